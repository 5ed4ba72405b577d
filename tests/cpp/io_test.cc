// Sockets, shared memory, and the thread that backs the pool.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>

#include <atomic>
#include <csignal>
#include <fstream>
#include <thread>

#include "io/memory.h"
#include "io/unix_socket.h"
#include "store/pool_backer.h"
#include "support.h"

namespace hicache {
namespace {

using testing::duration_ms;
using testing::eventually;
using testing::kBusyMs;
using testing::socket_name;

struct Pair {
  Fd left;
  Fd right;
};

Pair make_pair() {
  int fds[2];
  EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
  return {Fd(fds[0]), Fd(fds[1])};
}

size_t open_descriptors() {
  size_t count = 0;
  for (int fd = 0; fd < 1024; ++fd) count += fcntl(fd, F_GETFD) >= 0;
  return count;
}

TEST(UnixSocket, CarriesBytesAndADescriptor) {
  Pair pair = make_pair();
  const size_t before = open_descriptors();
  {
    Fd sent(memfd_create("sent", MFD_CLOEXEC));
    ASSERT_EQ(write(sent.get(), "pool", 4), 4);
    const std::vector<uint8_t> bytes = testing::bytes_of(1, 1000);
    const int sent_fd = sent.get();
    ASSERT_TRUE(send_all(pair.left, bytes, Deadline::after_ms(1000), {&sent_fd, 1}).ok());
    std::vector<uint8_t> received(1000);
    Fd taken;
    ASSERT_TRUE(receive_all(pair.right, received, Deadline::after_ms(1000), {&taken, 1}).ok());
    EXPECT_EQ(received, bytes);
    ASSERT_TRUE(taken.valid());
    char text[5] = {};
    EXPECT_EQ(pread(taken.get(), text, 4, 0), 4);
    EXPECT_STREQ(text, "pool");
    EXPECT_NE(fcntl(taken.get(), F_GETFD) & FD_CLOEXEC, 0);
  }
  EXPECT_EQ(open_descriptors(), before);
}

TEST(UnixSocket, CarriesManyDescriptorsInOrder) {
  Pair pair = make_pair();
  const size_t before = open_descriptors();
  {
    std::vector<Fd> sent;
    std::vector<int> numbers;
    for (size_t i = 0; i < kPassedFdsMax; ++i) {
      sent.emplace_back(memfd_create("sent", MFD_CLOEXEC));
      const std::string text = std::to_string(i);
      ASSERT_EQ(write(sent.back().get(), text.data(), text.size()), ssize_t(text.size()));
      numbers.push_back(sent.back().get());
    }
    const std::vector<uint8_t> bytes(10);
    ASSERT_TRUE(send_all(pair.left, bytes, Deadline::after_ms(1000), numbers).ok());
    std::vector<uint8_t> received(10);
    std::vector<Fd> taken(kPassedFdsMax + 1);
    ASSERT_TRUE(receive_all(pair.right, received, Deadline::after_ms(1000), taken).ok());
    for (size_t i = 0; i < kPassedFdsMax; ++i) {
      char text[8] = {};
      EXPECT_GT(pread(taken[i].get(), text, sizeof(text) - 1, 0), 0);
      EXPECT_EQ(text, std::to_string(i));
    }
    EXPECT_FALSE(taken.back().valid());
  }
  EXPECT_EQ(open_descriptors(), before);
}

TEST(UnixSocket, DescriptorsNobodyAskedForAreClosed) {
  Pair pair = make_pair();
  const size_t before = open_descriptors();
  Fd sent(memfd_create("sent", MFD_CLOEXEC));
  const std::vector<uint8_t> bytes(10);
  const int sent_fd = sent.get();
  for (int i = 0; i < 50; ++i) {
    ASSERT_TRUE(send_all(pair.left, bytes, Deadline::after_ms(1000), {&sent_fd, 1}).ok());
    std::vector<uint8_t> received(10);
    ASSERT_TRUE(receive_all(pair.right, received, Deadline::after_ms(1000)).ok());
  }
  // Two at once, where one is expected.
  int both[2] = {sent.get(), sent.get()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(both))] = {};
  iovec piece{const_cast<uint8_t*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(both));
  std::memcpy(CMSG_DATA(header), both, sizeof(both));
  ASSERT_EQ(sendmsg(pair.left.get(), &message, 0), 10);
  std::vector<uint8_t> received(10);
  {
    Fd taken;
    ASSERT_TRUE(receive_all(pair.right, received, Deadline::after_ms(1000), {&taken, 1}).ok());
    EXPECT_TRUE(taken.valid());
  }
  sent.reset();
  EXPECT_EQ(open_descriptors(), before);
}

TEST(UnixSocket, KeepsItsDeadline) {
  Pair pair = make_pair();
  std::vector<uint8_t> bytes(100);
  const uint64_t receive_took = duration_ms([&] {
    EXPECT_EQ(receive_all(pair.left, bytes, Deadline::after_ms(60)).code(), Code::kTimeout);
  });
  EXPECT_GE(receive_took, 59U);
  EXPECT_LE(receive_took, kBusyMs);
  std::vector<uint8_t> much(32 * kMiB);  // More than a socket buffers.
  const uint64_t send_took = duration_ms(
      [&] { EXPECT_EQ(send_all(pair.left, much, Deadline::after_ms(60)).code(), Code::kTimeout); });
  EXPECT_GE(send_took, 59U);
  EXPECT_LE(send_took, kBusyMs);
}

TEST(UnixSocket, AVeryLongDeadlineIsNotAShortOne) {
  for (const uint64_t ms : {uint64_t{1} << 31, uint64_t{1} << 32, uint64_t{1} << 45, UINT64_MAX}) {
    const Deadline deadline = Deadline::after_ms(ms);
    EXPECT_GT(deadline.remaining_ms(), 1'000'000);
    EXPECT_FALSE(deadline.expired());
  }
}

TEST(UnixSocket, AClosedPeerIsUnavailable) {
  Pair pair = make_pair();
  EXPECT_FALSE(wait_closed(pair.left, 10));
  pair.right.reset();
  std::vector<uint8_t> bytes(10);
  EXPECT_TRUE(wait_closed(pair.left, 1000));
  EXPECT_EQ(receive_all(pair.left, bytes, Deadline::after_ms(1000)).code(), Code::kUnavailable);
  EXPECT_EQ(send_all(pair.left, bytes, Deadline::after_ms(1000)).code(), Code::kUnavailable)
      << "and no SIGPIPE";
}

TEST(UnixSocket, SignalsDoNotCutWaitsShort) {
  Pair pair = make_pair();
  struct sigaction quiet{};
  quiet.sa_handler = [](int) {};
  struct sigaction before{};
  sigaction(SIGALRM, &quiet, &before);
  const itimerval often{{0, 5000}, {0, 5000}};
  setitimer(ITIMER_REAL, &often, nullptr);
  std::vector<uint8_t> bytes(10);
  EXPECT_GE(duration_ms([&] { EXPECT_FALSE(wait_closed(pair.left, 80)); }), 79U);
  EXPECT_GE(duration_ms([&] {
              EXPECT_EQ(receive_all(pair.left, bytes, Deadline::after_ms(80)).code(),
                        Code::kTimeout);
            }),
            79U);
  const itimerval never{};
  setitimer(ITIMER_REAL, &never, nullptr);
  sigaction(SIGALRM, &before, nullptr);
}

TEST(UnixSocket, NamesWhatIsWrongWithAPath) {
  const std::string long_path = "/tmp/" + std::string(120, 'x');
  for (const auto& path : {long_path, std::string()}) {
    const Result<Fd> listener = unix_listen(path, 1);
    EXPECT_EQ(listener.status().code(), Code::kInvalidArgument);
    EXPECT_NE(listener.status().message().find("runtime_dir"), std::string::npos);
    EXPECT_EQ(unix_connect(path).status().code(), Code::kInvalidArgument);
  }
  EXPECT_EQ(unix_connect("/tmp/hicache-nobody-listens-here").status().code(), Code::kUnavailable);
  EXPECT_EQ(unix_connect(socket_name()).status().code(), Code::kUnavailable);
  EXPECT_EQ(unix_listen("/nowhere/at/all", 1).status().code(), Code::kIo);
}

TEST(UnixSocket, TheSocketFileIsPrivate) {
  const std::string path =
      ::testing::TempDir() + "hicache-" + std::to_string(random_token() >> 40) + ".sock";
  Result<Fd> listener = unix_listen(path, 4);
  ASSERT_TRUE(listener.ok()) << listener.status().message();
  struct stat stat{};
  ASSERT_EQ(::stat(path.c_str(), &stat), 0);
  EXPECT_EQ(stat.st_mode & 0777, 0600U);
  EXPECT_EQ(unix_listen(path, 4).status().code(), Code::kIo) << "somebody is there already";
  Result<Fd> client = unix_connect(path);
  ASSERT_TRUE(client.ok());
  const Result<PeerIdentity> peer = peer_identity(client.value());
  ASSERT_TRUE(peer.ok());
  EXPECT_EQ(peer.value().uid, geteuid());
  unlink(path.c_str());
}

TEST(UnixSocket, WhoHoldsSomethingIsToldBeforeItSleeps) {
  Pair pair = make_pair();
  int told = 0;
  const auto waiting = [&told](uint64_t awake_ns) {
    return Waiting{monotonic_ns() + awake_ns, [&told] { ++told; }};
  };
  std::vector<uint8_t> bytes(1000);
  const Waiting patient = waiting(uint64_t{kBusyMs} * 1'000'000);
  ASSERT_TRUE(send_all(pair.left, bytes, Deadline::after_ms(1000), {}, &patient).ok());
  ASSERT_TRUE(receive_all(pair.right, bytes, Deadline::after_ms(1000), {}, &patient).ok());
  EXPECT_EQ(told, 0) << "nothing had to be waited for";
  std::thread late([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_TRUE(send_all(pair.left, bytes, Deadline::after_ms(1000)).ok());
  });
  EXPECT_TRUE(receive_all(pair.right, bytes, Deadline::after_ms(kBusyMs), {}, &patient).ok());
  late.join();
  EXPECT_EQ(told, 0) << "the bytes came before it had to sleep";

  const Waiting hasty = waiting(0);
  EXPECT_EQ(receive_all(pair.right, bytes, Deadline::after_ms(20), {}, &hasty).code(),
            Code::kTimeout);
  EXPECT_EQ(told, 1);
  const std::vector<uint8_t> much(8 * kMiB);
  EXPECT_EQ(send_all(pair.left, much, Deadline::after_ms(20), {}, &hasty).code(), Code::kTimeout);
  EXPECT_EQ(told, 2) << "a socket that is full is waited for, too";
}

TEST(SharedMemory, IsSealedAndShared) {
  std::vector<std::string> notices;
  auto owner = SharedMemory::create({3 * kMiB + 1, HugePages::kNever, -1}, notices);
  ASSERT_TRUE(owner.ok()) << owner.status().message();
  EXPECT_GE(owner.value()->size_bytes(), 3 * kMiB + 1);
  EXPECT_TRUE(notices.empty());
  const int fd = owner.value()->fd().get();
  EXPECT_NE(ftruncate(fd, 0), 0);
  EXPECT_NE(ftruncate(fd, 1 << 30), 0);
  ASSERT_TRUE(owner.value()->populate(0, kMiB, SharedMemory::Access::kWrite).ok());
  auto other = SharedMemory::map(Fd(dup(fd)), 3 * kMiB);
  ASSERT_TRUE(other.ok()) << other.status().message();
  owner.value()->address()[77] = 7;
  EXPECT_EQ(other.value()->address()[77], 7);
  EXPECT_EQ(other.value()->size_bytes(), 3 * kMiB);
}

TEST(SharedMemory, AHostileDescriptorIsRefused) {
  std::vector<std::string> notices;
  auto owner = SharedMemory::create({kMiB, HugePages::kNever, -1}, notices);
  ASSERT_TRUE(owner.ok());
  const int good = owner.value()->fd().get();
  const auto code_of = [](int fd, uint64_t size) {
    return SharedMemory::map(Fd(fd), size).status().code();
  };
  EXPECT_EQ(code_of(dup(good), kMiB + 1), Code::kCorrupt) << "smaller than announced";
  EXPECT_EQ(code_of(dup(good), 0), Code::kCorrupt);
  EXPECT_EQ(code_of(dup(good), UINT64_MAX), Code::kCorrupt);
  EXPECT_EQ(code_of(-1, kMiB), Code::kCorrupt);
  const int unsealed = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  ASSERT_EQ(ftruncate(unsealed, kMiB), 0);
  EXPECT_EQ(code_of(unsealed, kMiB), Code::kCorrupt) << "it could shrink under us";
  EXPECT_EQ(code_of(open("/dev/zero", O_RDWR | O_CLOEXEC), kMiB), Code::kCorrupt);
}

TEST(SharedMemory, HugePagesComeBack) {
  const auto free_pages = [] {
    uint64_t count = 0;
    std::ifstream("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages") >> count;
    return count;
  };
  const uint64_t before = free_pages();
  if (before < 4) GTEST_SKIP() << "this machine has no huge pages to spare";
  std::vector<std::string> notices;
  {
    auto owner = SharedMemory::create({3 * kMiB, HugePages::kAlways, -1}, notices);
    ASSERT_TRUE(owner.ok()) << owner.status().message();
    EXPECT_TRUE(notices.empty());
    ASSERT_TRUE(owner.value()->populate(0, 3 * kMiB, SharedMemory::Access::kWrite).ok());
    // A part of a huge page at the end, as a pool of odd size has.
    auto other = SharedMemory::map(Fd(dup(owner.value()->fd().get())), 3 * kMiB);
    ASSERT_TRUE(other.ok()) << other.status().message();
    other.value()->address()[3 * kMiB - 1] = 5;
    EXPECT_EQ(owner.value()->address()[3 * kMiB - 1], 5);
    EXPECT_EQ(free_pages(), before - 2);
  }
  EXPECT_EQ(free_pages(), before);
}

TEST(SharedMemory, SaysWhatCouldNotBeHad) {
  std::vector<std::string> notices;
  const auto much = SharedMemory::create({uint64_t{1} << 50, HugePages::kAlways, -1}, notices);
  EXPECT_EQ(much.status().code(), Code::kNoSpace);
  EXPECT_NE(much.status().message().find("nr_hugepages"), std::string::npos);
  const auto wrong_node = SharedMemory::create({kMiB, HugePages::kNever, 900}, notices);
  ASSERT_TRUE(wrong_node.ok());
  ASSERT_EQ(notices.size(), 1U);
  EXPECT_NE(notices[0].find("NUMA node 900"), std::string::npos);
}

TEST(PoolBacker, BacksWhatIsWantedAndNoMore) {
  std::vector<std::string> notices;
  auto memory = SharedMemory::create({200 * kMiB, HugePages::kNever, -1}, notices);
  ASSERT_TRUE(memory.ok());
  PoolBacker backer(*memory.value(), [] {});
  const auto backed = [&] {
    struct stat stat{};
    fstat(memory.value()->fd().get(), &stat);
    return static_cast<uint64_t>(stat.st_blocks) * 512;
  };
  EXPECT_EQ(backed(), 0U);
  backer.want(100 * kMiB);
  EXPECT_TRUE(eventually(20'000, [&] { return backer.backed_bytes() == 100 * kMiB; }));
  EXPECT_EQ(backed(), 100 * kMiB);
  backer.want(50 * kMiB);
  backer.want(kGiB);
  EXPECT_TRUE(eventually(20'000, [&] { return backer.backed_bytes() == 200 * kMiB; }));
  EXPECT_EQ(backed(), 200 * kMiB);
  EXPECT_EQ(backer.failure(), "");
}

}  // namespace
}  // namespace hicache
