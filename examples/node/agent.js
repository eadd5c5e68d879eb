// An agent in Node, with nothing but Node: one line of JSON per message, both ways (docs/protocol.md).
const net = require("node:net");
const readline = require("node:readline");
const socket = net.connect(process.env.ARMORCLAW_SOCKET);
const waiting = new Map(); // our calls, by id
let calls = 0;
const write = (message) => socket.write(JSON.stringify({ jsonrpc: "2.0", ...message }) + "\n");
const notify = (method, params) => write({ method, params });
const call = (method, params) =>
  new Promise((resolve, reject) => {
    waiting.set(++calls, { resolve, reject });
    write({ id: calls, method, params });
  });

// what the bridge asks of us
const methods = {
  "agent.ping": () => ({ pong: true }),
  "agent.shutdown": () => (setImmediate(() => socket.end()), {}),
  "agent.call": ({ method, params }, id) => {
    if (method !== "countdown") throw { code: -32601, message: `there is no ${method}` };
    for (let seq = 0; seq < params.from; seq++) {
      notify("$/chunk", { id, seq, data: params.from - seq }); // up to 8 need no credit
      notify("$/progress", { id, done: seq + 1, total: params.from });
    }
    return "lift-off";
  },
};
async function event({ subscription, seq, type, room_id, event_id, content }) {
  if (type === "m.room.message")
    await call("matrix.send", { room_id, message: content.body.toUpperCase(), reply_to: event_id, idempotency_key: event_id });
  notify("events.ack", { subscription, seq }); // until then it comes again, also to our next life
}

function answer({ id, method, params }) {
  if (method === "event") return event(params).catch((error) => console.error(error.message));
  if (id === undefined) return; // a notification we do not know
  try {
    if (!methods[method]) throw { code: -32601, message: `there is no ${method}` };
    write({ id, result: methods[method](params, id) });
  } catch ({ code = -32603, message }) {
    write({ id, error: { code, message } });
  }
}

readline.createInterface({ input: socket }).on("line", (line) => {
  const message = JSON.parse(line);
  if (message.method) return answer(message);
  const { resolve, reject } = waiting.get(message.id);
  waiting.delete(message.id);
  message.error ? reject(new Error(message.error.message)) : resolve(message.result);
});

socket.on("connect", async () => {
  const { secrets } = await call("secrets.take", { via: "inline" }); // once per life, or not at all
  console.log("keys:", Object.keys(JSON.parse(secrets).keys).join(" ") || "none");
  await call("agent.ready", { protocol: 1, library: "node" }); // this connection is the session
  await call("events.subscribe", { name: "main", from: "now" });
});
