// Preloaded into a process (LD_PRELOAD), this sets its wall clock apart from the machine's by as many seconds as the file that
// WEFT_TEST_CLOCK names holds now: 64 bits in the machine's own order. Clocks that only go on, and the times of files, are left alone.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *ahead_seconds;

__attribute__((constructor)) static void map_file(void) {
  const char *file = getenv("WEFT_TEST_CLOCK");
  int descriptor = file ? open(file, O_RDONLY | O_CLOEXEC) : -1;
  void *mapped = MAP_FAILED;
  if (descriptor >= 0) mapped = mmap(NULL, sizeof *ahead_seconds, PROT_READ, MAP_SHARED, descriptor, 0);
  if (mapped == MAP_FAILED) {
    static const char text[] = "WEFT_TEST_CLOCK names no file that can be mapped\n";
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0) _exit(126);
    _exit(126);
  }
  close(descriptor);
  ahead_seconds = mapped;
}

// Before the constructor has run, the clock is the machine's.
static int64_t ahead(void) { return ahead_seconds ? *ahead_seconds : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
  int result = (int)syscall(SYS_clock_gettime, clock, now);
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += ahead();
  return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  int result = (int)syscall(SYS_gettimeofday, now, zone);
  if (result == 0) now->tv_sec += ahead();
  return result;
}

time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}
