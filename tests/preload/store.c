/* Sits between a program and one folder: counts what the program does there, writes it down, and kills the program or fails
 * the act at a chosen one. The program is the real one, the file system is a real one; only the moment is chosen.
 *
 * Loaded by LD_PRELOAD, told by the environment (see tests/src/preload.rs):
 *   COFFRE_TEST_FOLDER  the folder, as the program names it
 *   COFFRE_TEST_LOG     a file; a line for every act: its verb, its path below the folder, and ` !errno` where it failed
 *   COFFRE_TEST_STRIKE  `WHAT NTH VERB PATH`: WHAT is before, midway, after (the program dies then) or an errno's number
 *                       (the act fails, and so do all later ones that match); VERB may be `*`, and PATH is a beginning
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum what { NOTHING, BEFORE, MIDWAY, AFTER, FAIL };

static const char *folder;
static size_t folder_length;
static int log_file = -1;
static enum what what = NOTHING;
static int failure;
static unsigned strike_at;
static char strike_verb[16], strike_path[PATH_MAX];
static atomic_uint matched;

__attribute__((constructor)) static void begin(void) {
    folder = getenv("COFFRE_TEST_FOLDER");
    if (!folder)
        return;
    folder_length = strlen(folder);
    const char *log = getenv("COFFRE_TEST_LOG");
    if (log)
        log_file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    const char *strike = getenv("COFFRE_TEST_STRIKE");
    char word[16];
    if (strike && sscanf(strike, "%15s %u %15s %4095s", word, &strike_at, strike_verb, strike_path) >= 3) {
        what = !strcmp(word, "before") ? BEFORE : !strcmp(word, "midway") ? MIDWAY : !strcmp(word, "after") ? AFTER : FAIL;
        failure = atoi(word);
    }
}

/* The path below the folder, `.` for the folder itself and `..` for the one that holds it; NULL for anything else. */
static const char *below(const char *path) {
    if (!folder || !path)
        return NULL;
    if (!strncmp(path, folder, folder_length)) {
        if (!path[folder_length])
            return ".";
        return path[folder_length] == '/' ? path + folder_length + 1 : NULL;
    }
    size_t length = strlen(path);
    return length < folder_length && !strncmp(path, folder, length) && folder[length] == '/' &&
                   !strchr(folder + length + 1, '/')
               ? ".."
               : NULL;
}

static const char *below_of(int file, char *room) {
    if (!folder)
        return NULL;
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, room, PATH_MAX - 1);
    if (length < 0)
        return NULL;
    room[length] = 0;
    return below(room);
}

static void write_down(const char *verb, const char *path, int error) {
    if (log_file < 0)
        return;
    char line[PATH_MAX + 64];
    int length = error ? snprintf(line, sizeof line, "%s %s !%d\n", verb, path, error)
                       : snprintf(line, sizeof line, "%s %s\n", verb, path);
    syscall(SYS_write, log_file, line, (size_t)length);
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;)
        pause();
}

/* Which of the acts that match this one is, counted from one; 0 for one that does not match. */
static unsigned count(const char *verb, const char *path) {
    if (what == NOTHING || (strcmp(strike_verb, "*") && strcmp(strike_verb, verb)) ||
        strncmp(path, strike_path, strlen(strike_path)))
        return 0;
    return atomic_fetch_add(&matched, 1) + 1;
}

/* Whether the act is to fail. */
static int enter(const char *verb, const char *path, unsigned number) {
    if (number == strike_at && (what == BEFORE || (what == MIDWAY && strcmp(verb, "write")))) {
        write_down(verb, path, -1);
        die();
    }
    if (what == FAIL && number >= strike_at) {
        write_down(verb, path, failure);
        errno = failure;
        return 1;
    }
    return 0;
}

static void leave(const char *verb, const char *path, unsigned number, int failed) {
    int error = failed ? errno : 0;
    write_down(verb, path, error);
    if (number && number == strike_at && what == AFTER)
        die();
    errno = error;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define ACT(verb, path, failed, call)                                                                                  \
    do {                                                                                                               \
        const char *at = (path);                                                                                       \
        if (!at)                                                                                                       \
            return call;                                                                                               \
        unsigned number = count(verb, at);                                                                             \
        if (number && enter(verb, at, number))                                                                         \
            return failed;                                                                                             \
        __typeof__(call) result = call;                                                                                \
        leave(verb, at, number, result == failed);                                                                     \
        return result;                                                                                                 \
    } while (0)

int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    const char *verb = flags & O_CREAT ? "create" : flags & O_DIRECTORY ? "open-folder" : "open";
    ACT(verb, below(path), -1, REAL(open64)(path, flags, mode));
}

int fsync(int file) {
    char room[PATH_MAX];
    ACT("fsync", below_of(file, room), -1, REAL(fsync)(file));
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    ACT("link", below(to), -1, REAL(linkat)(from_folder, from, to_folder, to, flags));
}

int rename(const char *from, const char *to) {
    ACT("rename", below(to), -1, REAL(rename)(from, to));
}

int unlink(const char *path) {
    ACT("unlink", below(path), -1, REAL(unlink)(path));
}

int mkdir(const char *path, mode_t mode) {
    ACT("mkdir", below(path), -1, REAL(mkdir)(path, mode));
}

DIR *opendir(const char *path) {
    ACT("list", below(path), NULL, REAL(opendir)(path));
}

int statx(int base, const char *path, int flags, unsigned mask, struct statx *found) {
    ACT("look", below(path), -1, REAL(statx)(base, path, flags, mask, found));
}

/* A write that meets a full disk writes what there is room for, and the next one fails. */
ssize_t write(int file, const void *bytes, size_t length) {
    char room[PATH_MAX];
    const char *at = file == log_file ? NULL : below_of(file, room);
    if (!at)
        return REAL(write)(file, bytes, length);
    unsigned number = count("write", at);
    int struck = number && number == strike_at;
    if (struck && what == FAIL && length > 1)
        length /= 2;
    else if (number && enter("write", at, number))
        return -1;
    if (struck && what == MIDWAY)
        length /= 2;
    ssize_t written = REAL(write)(file, bytes, length);
    leave("write", at, number, written < 0);
    if (struck && what == MIDWAY)
        die();
    return written;
}
