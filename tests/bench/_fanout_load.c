// The clients of `python -m tests.bench fanout`, all in one thread: one publishes, all others have subscribed.
//
// Usage: load SOCKET PID SUBSCRIBERS WINDOW RATE SECONDS SUBSCRIBE_BYTES < subscribe-and-publish
//
// Standard input is the message that subscribes, of SUBSCRIBE_BYTES, and the one that publishes, in which eight digits
// behind an "@" become the number of the event; it comes back so in what subscribers get. Of those published, WINDOW at
// most are not answered (an answer is told by its newline) or have not reached everybody; with a RATE there are so many
// a second. After a fifth of SECONDS of warming up it counts, and writes
//
//     EVENTS CPU_US P50_US P99_US
//
// where CPU_US is the time that process PID ran for each delivery, and the others are times from an event's publishing
// until the last subscriber had it. Status 1 and a word on stderr when the server closes or stalls.
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

enum { EVENTS = 1 << 20, READ = 1 << 20, MESSAGE = 1 << 16, DIGITS = 8 };

typedef struct {
    int fd, digits;  // of the number that is being read; -1: none is
    char number[DIGITS + 1];
} Subscriber;

static uint64_t begun[EVENTS];
static uint32_t taken[EVENTS], missing[EVENTS];  // units of 10 ns; how many subscribers do not have it yet
static char given[MESSAGE], received[READ];
static unsigned subscribers;
static size_t published, answered, everywhere, counted_from = SIZE_MAX, counted, deliveries;

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
        uint64_t ran;
        if (!file) continue;
        if (fscanf(file, "%lu", &ran) == 1) total += ran;
        fclose(file);
    }
    closedir(tasks);
    return total;
}

static int connected(const char *path) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    if (fd < 0 || connect(fd, (void *)&address, sizeof address)) die("cannot connect");
    return fd;
}

static void send_all(int fd, const char *data, size_t size) {
    while (size) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent <= 0) die("the server has closed");
        data += sent, size -= sent;
    }
}

// A subscriber has the event of this number.
static void reached(size_t number) {
    if (number >= published) die("an event that was not published");
    if (number >= counted_from) deliveries++;
    if (--missing[number]) return;
    everywhere++;
    if (number >= counted_from) taken[counted++] = (now() - begun[number]) / 10;
}

static void scan(Subscriber *s, const char *from, const char *end) {
    while (from < end) {
        if (s->digits < 0) {
            from = memchr(from, '@', end - from);
            if (!from) return;
            from++;
            s->digits = 0;
        }
        while (s->digits < DIGITS && from < end) s->number[s->digits++] = *from++;
        if (s->digits == DIGITS) {
            s->digits = -1;
            reached(strtoull(s->number, 0, 10));
        }
    }
}

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

int main(int count, char **arguments) {
    if (count != 8) die("see the top of its source");
    const char *path = arguments[1], *pid = arguments[2];
    subscribers = atoi(arguments[3]);
    size_t window = atoi(arguments[4]);
    double rate = atof(arguments[5]), seconds = atof(arguments[6]);
    size_t subscribe = atoi(arguments[7]), size = fread(given, 1, MESSAGE, stdin);
    char *publish = given + subscribe, *number = memchr(publish, '@', size - subscribe);
    if (!number) die("nothing to publish");
    size -= subscribe;

    int epoll = epoll_create1(EPOLL_CLOEXEC), publisher = connected(path);
    Subscriber *all = calloc(subscribers, sizeof *all);
    for (unsigned i = 0; i < subscribers; i++) {
        all[i].fd = connected(path);
        all[i].digits = -1;
        send_all(all[i].fd, given, subscribe);
        if (recv(all[i].fd, received, READ, 0) <= 0) die("the server refuses a subscriber");
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        epoll_ctl(epoll, EPOLL_CTL_ADD, all[i].fd, &event);
    }
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = subscribers};
    epoll_ctl(epoll, EPOLL_CTL_ADD, publisher, &event);

    uint64_t start = now(), warm = start + seconds * 2e8, end = warm + seconds * 1e9, due = start, cpu = 0, at;
    while ((at = now()) < end) {
        if (counted_from == SIZE_MAX && at >= warm) {
            counted_from = published;
            cpu = cpu_of(pid);
        }
        while (published - answered < window && published - everywhere < window && (!rate || at >= due)) {
            if (published == EVENTS) die("too many events");
            char digits[DIGITS + 1];
            snprintf(digits, sizeof digits, "%0*zu", DIGITS, published);
            memcpy(number + 1, digits, DIGITS);
            missing[published] = subscribers;
            begun[published++] = now();
            send_all(publisher, publish, size);
            if (rate) due += 1e9 / rate;
        }
        struct epoll_event events[256];
        int ready = epoll_wait(epoll, events, 256, rate ? 1 : 2000);
        if (ready < 0 && errno != EINTR) die("cannot wait");
        if (!ready && !rate) die("the server stalls");
        for (int i = 0; i < ready; i++) {
            unsigned who = events[i].data.u32;
            int fd = who == subscribers ? publisher : all[who].fd;
            ssize_t got = recv(fd, received, READ, MSG_DONTWAIT);
            if (got < 0 && errno == EAGAIN) continue;
            if (got <= 0) die("the server has closed");
            if (who != subscribers) scan(&all[who], received, received + got);
            else for (ssize_t k = 0; k < got; k++) answered += received[k] == '\n';
        }
    }
    if (!deliveries || !counted) die("nothing was delivered");
    double each = (cpu_of(pid) - cpu) / 1e3 / deliveries;
    qsort(taken, counted, sizeof *taken, by_size);
    printf("%zu %.4f %.2f %.2f\n", counted, each, taken[counted / 2] / 100.0, taken[counted * 99 / 100] / 100.0);
}
