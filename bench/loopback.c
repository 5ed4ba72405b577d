// What TCP over loopback can do here, without anything around it: the limit beside which the
// transfer engine is measured.
//
//   loopback stream CONNECTIONS CALL_SIZE AREA_SIZE SECONDS    -> bytes per second, CPU seconds per GB
//   loopback pingpong REPLY_SIZE SECONDS                       -> ns of a round trip: p50 p99
//
// Two processes. The sender walks through AREA_SIZE bytes, the receiver fills as many, one thread
// a connection at each end. A ping is 64 bytes, its answer REPLY_SIZE.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { kConnectionsMax = 16, kPingSize = 64, kRoundsMax = 1 << 20 };

typedef struct {
  int socket;
  uint8_t* area;
  size_t area_size;
  size_t call_size;
  double seconds;
  uint64_t moved;
} End;

static double now_s(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static double cpu_s(int who) {
  struct rusage used;
  getrusage(who, &used);
  return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
         1e-6 * (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

static void die(const char* what) {
  perror(what);
  exit(1);
}

static uint8_t* make_area(size_t size) {
  uint8_t* area =
      mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (area == MAP_FAILED) die("mmap");
  memset(area, 7, size);
  return area;
}

static int make_listener(struct sockaddr_in* address) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  memset(address, 0, sizeof(*address));
  address->sin_family = AF_INET;
  address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(*address);
  if (listener < 0 || bind(listener, (struct sockaddr*)address, size) != 0 ||
      listen(listener, kConnectionsMax) != 0 ||
      getsockname(listener, (struct sockaddr*)address, &size) != 0) {
    die("listen");
  }
  return listener;
}

static int make_connection(const struct sockaddr_in* address) {
  const int made = socket(AF_INET, SOCK_STREAM, 0);
  if (made < 0 || connect(made, (const struct sockaddr*)address, sizeof(*address)) != 0) {
    die("connect");
  }
  return made;
}

static void tune(int socket) {
  const int one = 1;
  setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

static void* run_sender(void* argument) {
  End* end = argument;
  size_t at = 0;
  for (;;) {
    const size_t left = end->area_size - at;
    const ssize_t sent =
        send(end->socket, end->area + at, left < end->call_size ? left : end->call_size,
             MSG_NOSIGNAL);
    if (sent <= 0) return NULL;
    at = (at + (size_t)sent) % end->area_size;
  }
}

static void* run_receiver(void* argument) {
  End* end = argument;
  size_t at = 0;
  const double stop_s = now_s() + end->seconds;
  while (now_s() < stop_s) {
    const size_t left = end->area_size - at;
    const ssize_t got =
        recv(end->socket, end->area + at, left < end->call_size ? left : end->call_size, 0);
    if (got <= 0) return NULL;
    at = (at + (size_t)got) % end->area_size;
    end->moved += (uint64_t)got;
  }
  shutdown(end->socket, SHUT_RDWR);
  return NULL;
}

static void run_threads(End* ends, int count, void* (*run)(void*)) {
  pthread_t threads[kConnectionsMax];
  for (int i = 0; i < count; ++i) {
    if (pthread_create(&threads[i], NULL, run, &ends[i]) != 0) die("pthread_create");
  }
  for (int i = 0; i < count; ++i) pthread_join(threads[i], NULL);
}

static int stream(int connections, size_t call_size, size_t area_size, double seconds) {
  struct sockaddr_in address;
  const int listener = make_listener(&address);
  End ends[kConnectionsMax] = {0};
  const size_t share = area_size / (size_t)connections;
  const pid_t child = fork();
  if (child < 0) die("fork");
  uint8_t* area = make_area(area_size);
  for (int i = 0; i < connections; ++i) {
    const int made = child == 0 ? make_connection(&address) : accept(listener, NULL, NULL);
    if (made < 0) die("accept");
    tune(made);
    ends[i] = (End){made, area + (size_t)i * share, share, call_size, seconds, 0};
  }
  if (child == 0) {
    run_threads(ends, connections, run_sender);
    _exit(0);
  }
  const double start_s = now_s();
  const double start_cpu_s = cpu_s(RUSAGE_SELF);
  run_threads(ends, connections, run_receiver);
  const double took_s = now_s() - start_s;
  const double receiver_cpu_s = cpu_s(RUSAGE_SELF) - start_cpu_s;
  waitpid(child, NULL, 0);
  uint64_t moved = 0;
  for (int i = 0; i < connections; ++i) moved += ends[i].moved;
  // The sender's time includes filling its area once; that is small beside seconds of sending.
  const double all_cpu_s = receiver_cpu_s + cpu_s(RUSAGE_CHILDREN);
  printf("%.6g %.6g\n", (double)moved / took_s, all_cpu_s / ((double)moved * 1e-9));
  return 0;
}

static void receive_all(int socket, uint8_t* target, size_t size) {
  while (size != 0) {
    const ssize_t got = recv(socket, target, size, 0);
    if (got <= 0) exit(0);
    target += got;
    size -= (size_t)got;
  }
}

static int compare(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return x < y ? -1 : x > y;
}

static int ping_pong(size_t reply_size, double seconds) {
  struct sockaddr_in address;
  const int listener = make_listener(&address);
  uint8_t ping[kPingSize] = {0};
  uint8_t* reply = make_area(reply_size);
  const pid_t child = fork();
  if (child < 0) die("fork");
  if (child == 0) {
    const int made = make_connection(&address);
    tune(made);
    for (;;) {
      receive_all(made, ping, sizeof(ping));
      if (send(made, reply, reply_size, MSG_NOSIGNAL) != (ssize_t)reply_size) _exit(0);
    }
  }
  const int made = accept(listener, NULL, NULL);
  if (made < 0) die("accept");
  tune(made);
  double* rounds = malloc(kRoundsMax * sizeof(*rounds));
  size_t count = 0;
  const double stop_s = now_s() + seconds;
  while (now_s() < stop_s && count < kRoundsMax) {
    const double start_s = now_s();
    if (send(made, ping, sizeof(ping), MSG_NOSIGNAL) != (ssize_t)sizeof(ping)) die("send");
    receive_all(made, reply, reply_size);
    rounds[count++] = (now_s() - start_s) * 1e9;
  }
  close(made);
  kill(child, SIGKILL);
  waitpid(child, NULL, 0);
  qsort(rounds, count, sizeof(*rounds), compare);
  printf("%.6g %.6g\n", rounds[count / 2], rounds[count * 99 / 100]);
  free(rounds);
  return 0;
}

int main(int count, char** arguments) {
  if (count == 6 && strcmp(arguments[1], "stream") == 0) {
    const int connections = atoi(arguments[2]);
    if (connections < 1 || connections > kConnectionsMax) return 2;
    return stream(connections, strtoull(arguments[3], NULL, 0), strtoull(arguments[4], NULL, 0),
                  atof(arguments[5]));
  }
  if (count == 4 && strcmp(arguments[1], "pingpong") == 0) {
    return ping_pong(strtoull(arguments[2], NULL, 0), atof(arguments[3]));
  }
  fprintf(stderr, "usage: see the head of loopback.c\n");
  return 2;
}
