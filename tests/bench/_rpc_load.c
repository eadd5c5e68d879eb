// The clients of `python -m tests.bench rpc`, all in one thread.
//
// Usage: load SOCKET PID CONNECTIONS DEPTH SECONDS < request
//
// Every connection keeps DEPTH requests in flight: each answer, told by its newline, is followed by the next request.
// After a tenth of SECONDS of warming up it counts answers, their time, and the CPU time of process PID, and writes
//
//     ANSWERS CPU_US P50_US P99_US
//
// where CPU_US is for one answer. Status 1 and a word on stderr when the server closes, stalls, or answers an error.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MOST_TIMES = 4000000, READ = 1 << 20 };

typedef struct {
    int fd, blocked, head, tail;
    char *out;  // room for depth requests
    size_t filled, sent;
    uint64_t *begun;  // when each request in flight was sent; a ring of depth
} Connection;

static char request[READ], answers[READ];
static size_t request_size;
static int depth, ready;
static uint32_t times[MOST_TIMES];  // in units of 10 ns
static size_t timed, done;

static void die(const char *word) {
    fprintf(stderr, "load: %s\n", word);
    exit(1);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

// Nanoseconds that all threads of the process have run.
static uint64_t cpu_of(const char *pid) {
    char path[300];
    uint64_t total = 0;
    snprintf(path, sizeof path, "/proc/%s/task", pid);
    DIR *tasks = opendir(path);
    if (!tasks) die("the server has ended");
    for (struct dirent *task; (task = readdir(tasks));) {
        if (task->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "/proc/%s/task/%s/schedstat", pid, task->d_name);
        FILE *file = fopen(path, "r");
        uint64_t ran = 0;
        if (file && fscanf(file, "%lu", &ran) == 1) total += ran;
        if (file) fclose(file);
    }
    closedir(tasks);
    return total;
}

static void wait_for(Connection *c, int blocked) {
    struct epoll_event event = {.events = EPOLLIN | (blocked ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(ready, EPOLL_CTL_MOD, c->fd, &event);
    c->blocked = blocked;
}

static void flush(Connection *c) {
    while (c->sent < c->filled) {
        ssize_t size = send(c->fd, c->out + c->sent, c->filled - c->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (size < 0 && errno != EAGAIN) die("cannot send");
        if (size < 0) {
            if (!c->blocked) wait_for(c, 1);
            return;
        }
        c->sent += size;
    }
    c->sent = c->filled = 0;
    if (c->blocked) wait_for(c, 0);
}

static void ask(Connection *c, int count) {
    uint64_t at = now();
    memmove(c->out, c->out + c->sent, c->filled -= c->sent);
    c->sent = 0;
    for (int i = 0; i < count; i++) {
        memcpy(c->out + c->filled, request, request_size);
        c->filled += request_size;
        c->begun[c->tail++ % depth] = at;
    }
    flush(c);
}

static void take(Connection *c, int counting) {
    ssize_t size = recv(c->fd, answers, READ, MSG_DONTWAIT);
    if (size < 0 && errno == EAGAIN) return;
    if (size <= 0) die("the server closed a connection");
    if (memmem(answers, size, "\"error\":", 8)) die("an error was answered");
    int count = 0;
    uint64_t at = now();
    for (char *p = answers; (p = memchr(p, '\n', answers + size - p)); p++, count++) {
        uint64_t took = at - c->begun[c->head++ % depth];
        if (!counting) continue;
        done++;
        if (timed < MOST_TIMES) times[timed++] = took / 10;
    }
    if (count) ask(c, count);
}

static int compare(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    const char *pid = argv[2];
    int connections = atoi(argv[3]);
    depth = atoi(argv[4]);
    uint64_t length = atof(argv[5]) * 1e9;
    request_size = fread(request, 1, sizeof request, stdin);
    ready = epoll_create1(0);
    struct sockaddr_un where = {.sun_family = AF_UNIX};
    strncpy(where.sun_path, argv[1], sizeof where.sun_path - 1);
    Connection *all = calloc(connections, sizeof *all);
    for (Connection *c = all; c < all + connections; c++) {
        c->fd = socket(AF_UNIX, SOCK_STREAM, 0);
        if (connect(c->fd, (void *)&where, sizeof where)) die("cannot connect");
        c->out = malloc(request_size * depth);
        c->begun = calloc(depth, sizeof *c->begun);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(ready, EPOLL_CTL_ADD, c->fd, &event);
    }
    uint64_t start = now(), counted_from = 0, cpu = 0, at = start;
    for (Connection *c = all; c < all + connections; c++) ask(c, depth);
    struct epoll_event events[64];
    while (at - start < length + length / 10) {
        int count = epoll_wait(ready, events, 64, 5000);
        if (!count) die("no answer for 5 s");
        for (int i = 0; i < count; i++) {
            Connection *c = events[i].data.ptr;
            if (events[i].events & EPOLLOUT) flush(c);
            if (events[i].events & (EPOLLIN | EPOLLHUP)) take(c, counted_from != 0);
        }
        at = now();
        if (!counted_from && at - start >= length / 10) {
            counted_from = at;
            cpu = cpu_of(pid);
        }
    }
    cpu = cpu_of(pid) - cpu;
    if (!done) die("nothing was answered");
    qsort(times, timed, sizeof *times, compare);
    printf("%zu %.3f %.2f %.2f\n", done, cpu / 1e3 / done, times[timed / 2] / 100.0, times[timed * 99 / 100] / 100.0);
}
