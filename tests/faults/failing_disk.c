/* Below a program (LD_PRELOAD): FAULT_ERRNO where files whose path ends in FAULT_NAME are opened,
   from the FAULT_FIRST-th time on, or, with FAULT_MIDDLE, in their second read; FAULT_FLOCK: locks. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char bad[65536];
static int value(const char *name) { const char *text = getenv(name); return text ? atoi(text) : 0; }
static int fail(int number) { errno = number; return -1; }
static int is_bad(const char *path) {
    static int openings;
    const char *end = getenv("FAULT_NAME");
    size_t own = end ? strlen(end) : 0, length = strlen(path);
    if (!own || length < own || strcmp(path + length - own, end)) return 0;
    return __sync_add_and_fetch(&openings, 1) >= value("FAULT_FIRST");
}
static int opened(int (*real)(const char *, int, ...), const char *path, int flags, int mode) {
    int fails = is_bad(path);
    if (fails && !value("FAULT_MIDDLE")) return fail(value("FAULT_ERRNO"));
    int number = real(path, flags, mode);
    if (number >= 0 && number < 65536) bad[number] = fails;
    return number;
}
#define OPENS(name) int name(const char *path, int flags, ...) { \
    va_list list; va_start(list, flags); int mode = va_arg(list, int); va_end(list); \
    return opened((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name), path, flags, mode); }
OPENS(open)
OPENS(open64)
ssize_t read(int number, void *to, size_t size) {
    ssize_t (*real)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
    if (number < 0 || number >= 65536 || !bad[number]) return real(number, to, size);
    return bad[number]++ == 1 ? real(number, to, size < 40 ? size : 40) : fail(value("FAULT_ERRNO"));
}
int flock(int number, int operation) {
    int (*real)(int, int) = dlsym(RTLD_NEXT, "flock");
    return value("FAULT_FLOCK") ? fail(value("FAULT_FLOCK")) : real(number, operation);
}
