/* Preloaded into a process under test: counts the calls that change the disk and, at the n-th or at
 * all of some names, kills the process, makes the call fail or return nothing, or first runs a
 * command.
 *
 * NOLA_FAULT_AT=<n> | NOLA_FAULT_NAME=<call>,<call>,...
 * NOLA_FAULT_SIGNAL=<number> | NOLA_FAULT_ERRNO=<number> | NOLA_FAULT_NOTHING=1 |
 * NOLA_FAULT_RUN=<command for the shell, without this library>
 * NOLA_FAULT_MISSING=<call>,...: these fail always, as on a file system that lacks them.
 * NOLA_FAULT_LOG=<file>: a line with its name appended for each call, so that a first run tells how
 * many there are, and in which order they come. The fsync of a folder is called fsync_folder.
 *
 * Locks exclude nobody here, as those of some shared file systems do between two machines.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

static atomic_int calls;

/* For a process that was forked: its calls are counted from one. */
void nola_fault_begin_anew(void) { atomic_store(&calls, 0); }

static int number(const char* name) {
    const char* text = getenv(name);
    return text ? atoi(text) : 0;
}

static void run(const char* command) {
    const pid_t child = fork();
    if (child == 0) {
        unsetenv("LD_PRELOAD");
        execl("/bin/sh", "sh", "-c", command, (char*)NULL);
        _exit(127);
    }
    int status;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (status != 0) abort();
}

static int is_among(const char* names, const char* name) {
    const size_t length = strlen(name);
    for (const char* at = names; (at = strstr(at, name)) != NULL; at += length) {
        const int begins = at == names || at[-1] == ',';
        if (begins && (at[length] == ',' || at[length] == '\0')) return 1;
    }
    return 0;
}

/* Returns 1 if the call is to fail or do nothing; errno is then set, or 0 for nothing. */
static int fault(const char* name) {
    const int call = atomic_fetch_add(&calls, 1) + 1;
    const char* log = getenv("NOLA_FAULT_LOG");
    if (log) {
        ssize_t (*real_write)(int, const void*, size_t) = dlsym(RTLD_NEXT, "write");
        int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
        char line[64];
        const int length = snprintf(line, sizeof line, "%s\n", name);
        if (real_write(fd, line, length) != length) abort();
        close(fd);
    }
    const char* missing = getenv("NOLA_FAULT_MISSING");
    const int lacks = missing && is_among(missing, name);
    errno = EINVAL;
    const char* wanted = getenv("NOLA_FAULT_NAME");
    if (wanted ? !is_among(wanted, name) : call != number("NOLA_FAULT_AT")) return lacks;
    if (getenv("NOLA_FAULT_RUN")) {
        run(getenv("NOLA_FAULT_RUN"));
        errno = EINVAL;
        return lacks;
    }
    if (number("NOLA_FAULT_SIGNAL")) {
        raise(number("NOLA_FAULT_SIGNAL"));
        return lacks;
    }
    errno = number("NOLA_FAULT_ERRNO");
    return errno != 0 || number("NOLA_FAULT_NOTHING");
}

#define WRAP(result, name, parameters, arguments)                  \
    result name parameters {                                       \
        static result(*real) parameters;                           \
        if (!real) real = (result(*) parameters)dlsym(RTLD_NEXT, #name); \
        if (fault(#name)) return errno ? -1 : 0;                   \
        return real arguments;                                     \
    }

WRAP(ssize_t, pwrite, (int fd, const void* b, size_t n, off_t o), (fd, b, n, o))
WRAP(ssize_t, pwrite64, (int fd, const void* b, size_t n, off_t o), (fd, b, n, o))
WRAP(ssize_t, copy_file_range, (int a, off_t* ao, int b, off_t* bo, size_t n, unsigned f),
     (a, ao, b, bo, n, f))
WRAP(int, ftruncate, (int fd, off_t n), (fd, n))
WRAP(int, ftruncate64, (int fd, off_t n), (fd, n))
WRAP(int, mkdir, (const char* p, mode_t m), (p, m))
WRAP(int, rename, (const char* p, const char* q), (p, q))
WRAP(int, link, (const char* p, const char* q), (p, q))
WRAP(int, unlink, (const char* p), (p))
WRAP(int, unlinkat, (int d, const char* p, int f), (d, p, f))
WRAP(int, rmdir, (const char* p), (p))
WRAP(int, renameat2, (int a, const char* p, int b, const char* q, unsigned f), (a, p, b, q, f))

int fsync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    struct stat status;
    const int folder = fstat(fd, &status) == 0 && S_ISDIR(status.st_mode);
    if (fault(folder ? "fsync_folder" : "fsync")) return errno ? -1 : 0;
    return real(fd);
}

int flock(int fd, int operation) {
    (void)fd;
    (void)operation;
    return 0;
}
