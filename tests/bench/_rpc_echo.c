// The floor of `python -m tests.bench rpc`: sends back what it reads. Usage: echo SOCKET
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static char buffer[1 << 18];

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    struct sockaddr_un where = {.sun_family = AF_UNIX};
    strncpy(where.sun_path, argv[1], sizeof where.sun_path - 1);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0), ready = epoll_create1(0);
    if (bind(listener, (void *)&where, sizeof where) || listen(listener, 128)) return perror(argv[1]), 1;
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[64];
    epoll_ctl(ready, EPOLL_CTL_ADD, listener, &event);
    puts("ready"), fflush(stdout);
    for (;;) {
        int count = epoll_wait(ready, events, 64, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                event.data.fd = accept(listener, 0, 0);
                epoll_ctl(ready, EPOLL_CTL_ADD, event.data.fd, &event);
                continue;
            }
            ssize_t size = recv(fd, buffer, sizeof buffer, 0), sent = 0, more;
            while (sent < size && (more = send(fd, buffer + sent, size - sent, MSG_NOSIGNAL)) > 0) sent += more;
            if (size <= 0 || sent < size) close(fd);
        }
    }
}
