/* Loaded before the C library: lets writes below a folder fail for want of room, and moves the
 * clock. What to do stands in the environment, read at each call, because processes are forked
 * from one that was started in fair weather:
 *   STORM_UNDER    folder; without it nothing fails
 *   STORM_AT       the write that fails first, from 1; 0 counts only
 *   STORM_ONCE     1: only that one; else everything after it, too
 *   STORM_COUNTER  file of 8 bytes in which all processes count together
 *   STORM_CLOCK_S  seconds to add to the time of day
 * A write is an open for writing, a write, a rename, a mkdir or a truncation. What glibc writes
 * for itself is not seen from outside, so fwrite counts as well; memory maps are not seen.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

static int counted(void) {
    const char *file = getenv("STORM_COUNTER"), *at = getenv("STORM_AT"), *once = getenv("STORM_ONCE");
    if (!file || !at) return 0;
    int fd = ((int (*)(const char *, int, ...))real("open"))(file, O_RDWR);
    if (fd < 0) return 0;
    int64_t *count = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (count == MAP_FAILED) return 0;
    int64_t now = __atomic_add_fetch(count, 1, __ATOMIC_SEQ_CST), first = atoll(at);
    munmap(count, sizeof *count);
    return first > 0 && (once && *once == '1' ? now == first : now >= first);
}

static int lies_below(const char *path) {
    const char *folder = getenv("STORM_UNDER");
    char whole[8192];
    if (!folder || !*folder || !path) return 0;
    if (path[0] != '/') {
        char here[4096];
        if (!getcwd(here, sizeof here)) return 0;
        snprintf(whole, sizeof whole, "%s/%s", here, path);
        path = whole;
    }
    size_t length = strlen(folder);
    return !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static int path_fails(const char *path) {
    int before = errno, fails = lies_below(path) && counted();
    errno = fails ? ENOSPC : before;
    return fails;
}

static int fd_fails(int fd) {
    if (!getenv("STORM_UNDER")) return 0;
    int before = errno;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length <= 0) return 0;
    path[length] = 0;
    return path_fails(path);
}

static int at_fails(int folder, const char *path) {
    if (path[0] == '/' || folder == AT_FDCWD) return path_fails(path);
    return fd_fails(folder);
}

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & O_CREAT; }

#define OPEN(name)                                                       \
    int name(const char *path, int flags, ...) {                         \
        va_list rest;                                                    \
        va_start(rest, flags);                                           \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                    \
        if (writes(flags) && path_fails(path)) return -1;                \
        return REAL(name)(path, flags, mode);                            \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                     \
    int name(int folder, const char *path, int flags, ...) {             \
        va_list rest;                                                    \
        va_start(rest, flags);                                           \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                    \
        if (writes(flags) && at_fails(folder, path)) return -1;          \
        return REAL(name)(folder, path, flags, mode);                    \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                      \
    FILE *name(const char *path, const char *mode) {                     \
        if (strpbrk(mode, "wa+") && path_fails(path)) return NULL;       \
        return REAL(name)(path, mode);                                   \
    }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int fd, const void *data, size_t size) {
    return fd_fails(fd) ? -1 : REAL(write)(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    return fd_fails(fd) ? -1 : REAL(pwrite)(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    return fd_fails(fd) ? -1 : REAL(pwrite64)(fd, data, size, at);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    return fd_fails(fd) ? -1 : REAL(writev)(fd, parts, count);
}
size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
    return size && count && fd_fails(fileno(file)) ? 0 : REAL(fwrite)(data, size, count, file);
}
ssize_t sendfile(int to, int from, off_t *at, size_t count) {
    return fd_fails(to) ? -1 : ((ssize_t(*)(int, int, off_t *, size_t))real("sendfile"))(to, from, at, count);
}
ssize_t sendfile64(int to, int from, off64_t *at, size_t count) {
    return fd_fails(to) ? -1 : ((ssize_t(*)(int, int, off64_t *, size_t))real("sendfile64"))(to, from, at, count);
}
int ftruncate(int fd, off_t size) { return fd_fails(fd) ? -1 : REAL(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { return fd_fails(fd) ? -1 : REAL(ftruncate64)(fd, size); }
int mkdir(const char *path, mode_t mode) { return path_fails(path) ? -1 : REAL(mkdir)(path, mode); }
int rename(const char *from, const char *to) { return path_fails(to) ? -1 : REAL(rename)(from, to); }
int renameat(int a, const char *from, int b, const char *to) {
    return at_fails(b, to) ? -1 : REAL(renameat)(a, from, b, to);
}

static time_t shift(void) {
    const char *seconds = getenv("STORM_CLOCK_S");
    return seconds ? (time_t)atoll(seconds) : 0;
}
int clock_gettime(clockid_t which, struct timespec *now) {
    int failed = REAL(clock_gettime)(which, now);
    if (!failed && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) now->tv_sec += shift();
    return failed;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int failed = ((int (*)(struct timeval *, void *))real("gettimeofday"))(now, zone);
    if (!failed) now->tv_sec += shift();
    return failed;
}
time_t time(time_t *now) {
    time_t shown = ((time_t(*)(time_t *))real("time"))(NULL) + shift();
    if (now) *now = shown;
    return shown;
}
