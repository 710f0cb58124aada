/* A monotonic clock that stands still while the process is stopped (SIGSTOP), for .ci/kernel --icount.
 *
 * While the guest is idle, QEMU lets its clocks advance like this clock. Without this, a guest that was stopped for five
 * minutes would find that five minutes have passed: its timers would all have expired at once.
 *
 *     cc -shared -fPIC -O2 clock.c -o clock.so -ldl -pthread; LD_PRELOAD=./clock.so qemu-system-x86_64 ...
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#define SECOND 1000000000LL
#define LONGEST SECOND /* between two looks. A thread looks more often: if more has passed, the process did not run. */

static _Atomic long long last; /* look, by the real clock */
static _Atomic long long stopped; /* for how long in all */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int (*real)(clockid_t, struct timespec *);

static long long now(void)
{
	struct timespec time;

	real(CLOCK_MONOTONIC, &time);
	return time.tv_sec * SECOND + time.tv_nsec;
}

/* Looks at the clock, and takes away the time for which nobody did. */
static long long look(void)
{
	long long time, result;

	pthread_mutex_lock(&lock);
	time = now();
	if (last != 0 && time - last > LONGEST)
		stopped += time - last; /* first, so that whoever sees the new look sees this, too */
	if (last < time)
		last = time;
	result = time - stopped;
	pthread_mutex_unlock(&lock);
	return result;
}

int clock_gettime(clockid_t clock, struct timespec *result)
{
	long long before, less, time;

	if (real == NULL)
		real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	if (clock != CLOCK_MONOTONIC)
		return real(clock, result);
	/* Read in this order: if the process is stopped in between, the difference is too long. */
	before = last;
	less = stopped;
	time = now();
	if (time - before > LONGEST) {
		time = look();
	} else {
		/* The latest of all, so that the clock goes on from here, and not from an earlier time, after a stop. */
		while (before < time && !atomic_compare_exchange_weak(&last, &before, time))
			;
		time -= less;
	}
	result->tv_sec = time / SECOND;
	result->tv_nsec = time % SECOND;
	return 0;
}

static void *looks(void *unused)
{
	struct timespec pause = { .tv_nsec = SECOND / 10 };

	for (;;) {
		look();
		nanosleep(&pause, NULL);
	}
	return unused;
}

__attribute__((constructor)) static void start(void)
{
	pthread_t thread;

	real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	look();
	pthread_create(&thread, NULL, looks, NULL);
}
