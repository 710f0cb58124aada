// Sockets made in ways that most programs do not use. Each prints the protocol of a TCP socket made so (262 is Multipath
// TCP), or the error's number, negative.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int protocol(int fd)
{
    int value = 0;
    socklen_t size = sizeof(value);

    if (fd < 0)
        return -errno;
    return getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &value, &size) ? -errno : value;
}

// The child of a vfork() shares the memory of its parent, which waits.
static int by_vfork(void)
{
    static volatile int found;

    if (vfork() == 0) {
        found = protocol(socket(AF_INET, SOCK_STREAM, 0));
        _exit(0);
    }
    return found;
}

static int open_in_child(void *descriptor)
{
    *(int *)descriptor = socket(AF_INET, SOCK_STREAM, 0);
    return 0;
}

// A process with the descriptors of another, and perhaps its memory.
static int by_clone(int flags)
{
    static char stack[1 << 16];
    int *descriptor = mmap(NULL, sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int child = clone(open_in_child, stack + sizeof(stack), flags | SIGCHLD, descriptor);

    if (child < 0 || waitpid(child, NULL, 0) != child)
        return -errno;
    return protocol(*descriptor);
}

static int by_io_uring(void)
{
    struct io_uring_params params = {0};
    int ring = syscall(SYS_io_uring_setup, 1, &params);

    if (ring < 0)
        return -errno;
    char *rings = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    char *completions = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
    struct io_uring_sqe *entry = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    if (rings == MAP_FAILED || completions == MAP_FAILED || entry == MAP_FAILED)
        return -errno;
    entry->opcode = 45;  // IORING_OP_SOCKET, Linux 5.19
    entry->fd = AF_INET;
    entry->off = SOCK_STREAM;
    *(unsigned *)(rings + params.sq_off.array) = 0;
    __atomic_store_n((unsigned *)(rings + params.sq_off.tail), 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
        return -errno;
    int result = ((struct io_uring_cqe *)(completions + params.cq_off.cqes))->res;
    return result < 0 ? result : protocol(result);
}

// socket() of the 32-bit interface, and of the x32 one.
static int by_other_interface(int x32)
{
#ifdef __x86_64__
    long result;

    if (x32)
        result = syscall(SYS_socket | 0x40000000, AF_INET, SOCK_STREAM, 0);
    else
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(359), "b"(AF_INET), "c"(SOCK_STREAM), "d"(0) : "memory");
    if (x32 && result < 0)
        return -errno;
    return (int)result < 0 ? (int)result : protocol(result);
#else
    (void)x32;
    return -ENOSYS;
#endif
}

// A filter of the program's own, which does this with socket(): the result of seccomp() is an error, or socket()'s.
static int under_a_filter(uint32_t action, unsigned flags)
{
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof(program) / sizeof(*program), program};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &filter) < 0)
        return -errno;
    return protocol(socket(AF_INET, SOCK_STREAM, 0));
}

int main(int count, char **arguments)
{
    const char *way = count > 1 ? arguments[1] : "";

    if (!strcmp(way, "vfork"))
        printf("%d\n", by_vfork());
    else if (!strcmp(way, "clone"))
        printf("%d\n", by_clone(CLONE_FILES));
    else if (!strcmp(way, "clone-vm"))
        printf("%d\n", by_clone(CLONE_FILES | CLONE_VM));
    else if (!strcmp(way, "io_uring"))
        printf("%d\n", by_io_uring());
    else if (!strcmp(way, "32-bit"))
        printf("%d\n", by_other_interface(0));
    else if (!strcmp(way, "x32"))
        printf("%d\n", by_other_interface(1));
    else if (!strcmp(way, "errno"))
        printf("%d\n", under_a_filter(SECCOMP_RET_ERRNO | EXDEV, 0));
    else if (!strcmp(way, "trace"))
        printf("%d\n", under_a_filter(SECCOMP_RET_TRACE, 0));
    else if (!strcmp(way, "listener"))
        printf("%d\n", under_a_filter(SECCOMP_RET_USER_NOTIF, SECCOMP_FILTER_FLAG_NEW_LISTENER));
    else
        return 2;
    return 0;
}
