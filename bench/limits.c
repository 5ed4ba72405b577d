// The copies that this machine offers, for bench/limits.py: what our own copies are measured against.
//
// Each thread copies its share of the bytes, cut anywhere. Threads are started before the clock is,
// spin until told to go, and the clock stops when the last is done: nothing but copying is counted.
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

enum { kLibc = 0, kStreaming = 1, kRepMovsb = 2 };

static void copy_libc(uint8_t* target, const uint8_t* source, size_t size) {
  memcpy(target, source, size);
}

static void copy_rep_movsb(uint8_t* target, const uint8_t* source, size_t size) {
  __asm__ volatile("rep movsb" : "+D"(target), "+S"(source), "+c"(size) : : "memory");
}

__attribute__((target("avx2"))) static void copy_streaming(uint8_t* target, const uint8_t* source,
                                                           size_t size) {
  size_t head = (32 - ((uintptr_t)target & 31)) & 31;
  if (head > size) head = size;
  memcpy(target, source, head);
  target += head, source += head, size -= head;
  for (; size >= 128; target += 128, source += 128, size -= 128) {
    _mm_prefetch((const char*)source + 1024, _MM_HINT_NTA);
    _mm_prefetch((const char*)source + 1088, _MM_HINT_NTA);
    __m256i a = _mm256_loadu_si256((const __m256i*)source);
    __m256i b = _mm256_loadu_si256((const __m256i*)(source + 32));
    __m256i c = _mm256_loadu_si256((const __m256i*)(source + 64));
    __m256i d = _mm256_loadu_si256((const __m256i*)(source + 96));
    _mm256_stream_si256((__m256i*)target, a);
    _mm256_stream_si256((__m256i*)(target + 32), b);
    _mm256_stream_si256((__m256i*)(target + 64), c);
    _mm256_stream_si256((__m256i*)(target + 96), d);
  }
  _mm_sfence();
  memcpy(target, source, size);
}

typedef struct {
  void (*copy)(uint8_t*, const uint8_t*, size_t);
  const uint64_t* targets;
  const uint64_t* sources;
  size_t size, begin, end;
  atomic_int *ready, *go, *done;
} Share;

static void copy_share(const Share* share) {
  for (size_t at = share->begin; at < share->end;) {
    size_t item = at / share->size, offset = at % share->size;
    size_t length = share->size - offset;
    if (length > share->end - at) length = share->end - at;
    share->copy((uint8_t*)share->targets[item] + offset,
                (const uint8_t*)share->sources[item] + offset, length);
    at += length;
  }
}

static void* run_share(void* argument) {
  Share* share = argument;
  atomic_fetch_add(share->ready, 1);
  while (!atomic_load(share->go)) sched_yield();
  copy_share(share);
  atomic_fetch_add(share->done, 1);
  return NULL;
}

int limits_has_streaming(void) { return __builtin_cpu_supports("avx2"); }

static double now_s(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

// Copies `count` pieces of `size` bytes with 1 to 64 threads, the caller among them; returns the
// seconds, negative on failure.
double limits_copy(int kind, int threads, const uint64_t* targets, const uint64_t* sources,
                   size_t count, size_t size) {
  if (threads < 1 || threads > 64 || count == 0 || size == 0) return -1;
  pthread_t ids[64];
  Share shares[64];
  atomic_int ready = 0, go = 0, done = 0;
  size_t total = count * size, part = (total / (size_t)threads + 63) & ~(size_t)63;
  for (int i = 0; i < threads; i++) {
    size_t begin = part * (size_t)i, end = i + 1 < threads ? begin + part : total;
    shares[i] = (Share){kind == kStreaming   ? copy_streaming
                        : kind == kRepMovsb ? copy_rep_movsb
                                            : copy_libc,
                        targets,
                        sources,
                        size,
                        begin < total ? begin : total,
                        end < total ? end : total,
                        &ready,
                        &go,
                        &done};
    if (i > 0 && pthread_create(&ids[i], NULL, run_share, &shares[i])) return -1;
  }
  while (atomic_load(&ready) < threads - 1) sched_yield();
  double start = now_s();
  atomic_store(&go, 1);
  copy_share(&shares[0]);
  while (atomic_load(&done) < threads - 1) sched_yield();
  double stop = now_s();
  for (int i = 1; i < threads; i++) pthread_join(ids[i], NULL);
  return stop - start;
}
