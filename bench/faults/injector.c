/* Makes system calls on files below a directory fail. Loaded by LD_PRELOAD; nothing happens until `fault_arm`.
 *
 * Calls are counted over a process and all that it forks. From the `nth` call on (only that one, if `once`) each call of
 * the armed name fails with `number`. `nth` = 0 only counts. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static struct { char call[16], below[PATH_MAX]; long nth; int number, once; volatile long *count; } plan;

void fault_arm(const char *call, const char *below, long nth, int number, int once) {
    plan.count = mmap(NULL, sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    snprintf(plan.below, sizeof plan.below, "%s", below);
    plan.nth = nth, plan.number = number, plan.once = once;
    snprintf(plan.call, sizeof plan.call, "%s", call);
}

long fault_count(void) { return plan.count ? *plan.count : 0; }

static int strikes(const char *call, const char *path) {
    if (!plan.count || strcmp(call, plan.call) || strncmp(path, plan.below, strlen(plan.below))) return 0;
    long now = __sync_add_and_fetch(plan.count, 1);
    if (!plan.nth || (plan.once ? now != plan.nth : now < plan.nth)) return 0;
    errno = plan.number;
    return 1;
}

static int strikes_fd(const char *call, int fd) {
    char link[40], path[PATH_MAX];
    if (!plan.count || fd < 0 || strcmp(call, plan.call)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strikes(call, path);
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define BY_FD(type, name, call, failed, parameters, types, arguments, fd) \
    type name parameters { REAL(type, name, types); return strikes_fd(call, fd) ? failed : real arguments; }
#define LIST(...) __VA_ARGS__

BY_FD(ssize_t, write, "write", -1, (int fd, const void *b, size_t n), LIST(int, const void *, size_t), (fd, b, n), fd)
BY_FD(ssize_t, writev, "write", -1, (int fd, const struct iovec *v, int n), LIST(int, const struct iovec *, int), (fd, v, n), fd)
BY_FD(ssize_t, pwrite, "write", -1, (int fd, const void *b, size_t n, off_t o), LIST(int, const void *, size_t, off_t), (fd, b, n, o), fd)
BY_FD(ssize_t, pwrite64, "write", -1, (int fd, const void *b, size_t n, off_t o), LIST(int, const void *, size_t, off_t), (fd, b, n, o), fd)
BY_FD(ssize_t, read, "read", -1, (int fd, void *b, size_t n), LIST(int, void *, size_t), (fd, b, n), fd)
BY_FD(ssize_t, pread, "read", -1, (int fd, void *b, size_t n, off_t o), LIST(int, void *, size_t, off_t), (fd, b, n, o), fd)
BY_FD(ssize_t, pread64, "read", -1, (int fd, void *b, size_t n, off_t o), LIST(int, void *, size_t, off_t), (fd, b, n, o), fd)
BY_FD(int, fsync, "fsync", -1, (int fd), int, (fd), fd)
BY_FD(int, fdatasync, "fsync", -1, (int fd), int, (fd), fd)
BY_FD(int, ftruncate, "truncate", -1, (int fd, off_t n), LIST(int, off_t), (fd, n), fd)
BY_FD(int, ftruncate64, "truncate", -1, (int fd, off_t n), LIST(int, off_t), (fd, n), fd)
BY_FD(void *, mmap, "mmap", MAP_FAILED, (void *a, size_t n, int p, int f, int fd, off_t o), LIST(void *, size_t, int, int, int, off_t), (a, n, p, f, fd, o), fd)
BY_FD(void *, mmap64, "mmap", MAP_FAILED, (void *a, size_t n, int p, int f, int fd, off_t o), LIST(void *, size_t, int, int, int, off_t), (a, n, p, f, fd, o), fd)

int rename(const char *from, const char *to) { REAL(int, rename, const char *, const char *); return strikes("rename", to) ? -1 : real(from, to); }
int link(const char *from, const char *to) { REAL(int, link, const char *, const char *); return strikes("link", to) ? -1 : real(from, to); }
int mkdir(const char *path, mode_t mode) { REAL(int, mkdir, const char *, mode_t); return strikes("mkdir", path) ? -1 : real(path, mode); }
int unlink(const char *path) { REAL(int, unlink, const char *); return strikes("unlink", path) ? -1 : real(path); }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, name, const char *, int, ...); \
        va_list list; va_start(list, flags); mode_t mode = va_arg(list, mode_t); va_end(list); \
        return strikes("open", path) ? -1 : real(path, flags, mode); }
#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        REAL(int, name, int, const char *, int, ...); \
        va_list list; va_start(list, flags); mode_t mode = va_arg(list, mode_t); va_end(list); \
        return strikes("open", path) ? -1 : real(at, path, flags, mode); }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
