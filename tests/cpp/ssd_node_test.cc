// Nodes whose SSD directories are slow, full, taken, gone or lent to others; what outlives a node;
// and how a node ends.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/fs.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include <thread>

#include "child_process.h"
#include "raw_client.h"
#include "ssd_bench.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::ChildProcess;
using testing::eventually;
using testing::key_of;
using testing::kPatienceMs;
using testing::RawClient;
using testing::SimpleClient;
using testing::SsdSetup;

constexpr uint64_t kPageSize = 256 * kKiB;

/// An ext4 of its own in a file, to be filled and frozen. Not valid: not root, or no tools.
class SmallDisk {
 public:
  SmallDisk(const std::string& folder, uint64_t size) : path_(folder + "/disk") {
    const std::string image = folder + "/image";
    const std::string command = "truncate -s " + std::to_string(size) + " " + image +
                                " && mkfs.ext4 -q -m 0 " + image + " && mkdir " + path_ +
                                " && mount -o loop " + image + " " + path_;
    is_valid_ = geteuid() == 0 && std::system(("{ " + command + "; } 2>/dev/null").c_str()) == 0;
  }
  ~SmallDisk() {
    if (!is_valid_) return;
    thaw();
    // What the node's process had open is let go a moment after it.
    const bool is_gone = eventually(kPatienceMs, [this] { return umount(path_.c_str()) == 0; });
    if (!is_gone) umount2(path_.c_str(), MNT_DETACH);
  }
  bool valid() const { return is_valid_; }
  const std::string& path() const { return path_; }
  /// Whatever writes there waits until it thaws.
  bool freeze() { return control(FIFREEZE); }
  bool thaw() { return control(FITHAW); }

 private:
  bool control(unsigned long request) const {
    const Fd fd(open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    return fd.valid() && ioctl(fd.get(), request, 0) == 0;
  }

  const std::string path_;
  bool is_valid_ = false;
};

class SsdNodeFaultsTest : public testing::SsdNodeTest {
 protected:
  void put_pages(SimpleClient& client, uint64_t first, uint64_t count) {
    for (uint64_t n = first; n < first + count; ++n) {
      ASSERT_EQ(client.put(key_of(n), bytes_of(n, kPageSize)), Code::kOk) << n;
    }
  }
  static uint64_t found(SimpleClient& client, uint64_t first, uint64_t count) {
    uint64_t hits = 0;
    for (uint64_t n = first; n < first + count; ++n) {
      std::vector<uint8_t> bytes;
      if (client.get(key_of(n), bytes) != Code::kOk) continue;
      EXPECT_EQ(bytes, bytes_of(n, kPageSize)) << n;
      ++hits;
    }
    return hits;
  }
  static Code remove(SimpleClient& client, uint64_t n) {
    std::vector<Code> codes;
    const Key key = key_of(n);
    client.client.remove(client.space, {&key, 1}, codes);
    return codes.at(0);
  }
  uint64_t notices_with(const std::string& part) const {
    uint64_t known = 0;
    const std::vector<std::string> all = node_->notices_since(known);
    return static_cast<uint64_t>(std::count_if(all.begin(), all.end(), [&](const auto& notice) {
      return notice.find(part) != std::string::npos;
    }));
  }
};

// ---------------------------------------------------------------- what outlives a node

TEST_F(SsdNodeFaultsTest, WhatWasAcknowledgedOutlivesAKillRightAfterIt) {
  for (int round = 0; round < 10; ++round) {
    const std::string path = testing::socket_name();
    ChildProcess child("ssd_node", {path, kv(), "through"});
    ASSERT_TRUE(child.is_ready());
    SimpleClient one(path, kPatienceMs);
    const size_t other = one.client.open_namespace(key_of(99), "other");
    for (uint64_t n = 0; n < 8; ++n) {
      one.put(key_of(n), bytes_of(n, kPageSize), {.replace = true});
    }
    // Until all are on the disk.
    ASSERT_TRUE(eventually(kPatienceMs, [&] {
      return one.client.node_stats_json().value().find("\"ssd_writing_bytes\":0,") !=
             std::string::npos;
    }));
    switch (round % 3) {
      case 0:
        EXPECT_EQ(remove(one, 3), Code::kOk);
        break;
      case 1:
        ASSERT_TRUE(one.client.clear(one.space).ok());
        break;
      default:
        EXPECT_EQ(one.put(key_of(3), bytes_of(1003, kPageSize), {.replace = true}), Code::kOk);
    }
    child.end();
    start();
    const auto reader = client();
    std::vector<uint8_t> bytes;
    const Code code = reader->get(key_of(3), bytes);
    if (round % 3 == 2) {
      EXPECT_TRUE(code == Code::kNotFound || bytes == bytes_of(1003, kPageSize));
    } else {
      EXPECT_EQ(code, Code::kNotFound);
    }
    EXPECT_EQ(found(*reader, 0, 3), round % 3 == 1 ? 0U : 3U);
    EXPECT_EQ(other, 1U);
    node_.reset();
  }
}

TEST_F(SsdNodeFaultsTest, AnAnswerWaitsForASlowDiskAndTheNodeForNobody) {
  SmallDisk disk(folder_.path(), 128 * kMiB);
  if (!disk.valid()) GTEST_SKIP() << "no file system can be mounted here";
  start_on({disk.path() + "/kv"}, {.size_limit = 48 * kMiB, .write_through = true});
  const auto one = client();
  const auto other = client();
  put_pages(*one, 0, 8);
  ASSERT_TRUE(settles("ssd_pages", 8));
  ASSERT_TRUE(disk.freeze());
  std::atomic<bool> is_answered{false};
  std::thread remover([&] {
    EXPECT_EQ(remove(*one, 3), Code::kOk);
    is_answered = true;
  });
  // One that leaves, and one that talks on, while their answers wait.
  {
    const auto leaving = RawClient::greeted(node_->socket_path());
    const NamespaceIndex index = leaving->open_namespace(testing::kTestNamespace);
    const Key key = key_of(4);
    leaving->send(RawClient::keys_frame(NodeOp::kRemove, index, 0, {&key, 1}));
  }
  const auto babbling = RawClient::greeted(node_->socket_path());
  const NamespaceIndex index = babbling->open_namespace(testing::kTestNamespace);
  const Key key = key_of(5);
  std::vector<uint8_t> frames = RawClient::keys_frame(NodeOp::kRemove, index, 0, {&key, 1});
  frames.resize(frames.size() + 4096, 0xEE);
  babbling->send(frames);
  for (const uint64_t n : {3, 4, 5}) {
    EXPECT_TRUE(eventually(kPatienceMs, [&] {
      return other->lookup(key_of(n)) == Code::kNotFound;
    })) << n;
  }
  // The others are served meanwhile.
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(found(*other, 6, 2), 2U);
  }
  EXPECT_FALSE(is_answered);
  ASSERT_TRUE(disk.thaw());
  remover.join();
  EXPECT_TRUE(babbling->receive());
  EXPECT_TRUE(babbling->is_closed());
  EXPECT_EQ(found(*other, 0, 8), 5U);
  node_.reset();
}

TEST_F(SsdNodeFaultsTest, AFileSystemWithRoomForTwoRegionsIsWrittenTo) {
  SmallDisk disk(folder_.path(), 24 * kMiB);
  if (!disk.valid()) GTEST_SKIP() << "no file system can be mounted here";
  start_on({disk.path() + "/kv"},
           {.size_limit = 256 * kMiB, .region_size = 8 * kMiB, .write_through = true});
  const auto one = client();
  put_pages(*one, 0, 50);
  ASSERT_TRUE(settles("ssd_writing_bytes", 0));
  EXPECT_GE(stat("ssd_written_pages"), 50U);
  ASSERT_TRUE(node_->flush(kPatienceMs));
  EXPECT_LE(stat("ssd_used_bytes"), 16 * kMiB);
  start_on({disk.path() + "/kv"},
           {.size_limit = 256 * kMiB, .region_size = 8 * kMiB, .write_through = true});
  const auto two = client();
  EXPECT_GT(found(*two, 0, 50), 0U);
  node_.reset();
}

TEST_F(SsdNodeFaultsTest, AFlushThatFindsNoRoomEndsAndSaysSo) {
  // The file system is to keep more than it has: the log may not have a single region.
  start_on({kv()}, {.free_min = UINT64_MAX / 4});
  const auto one = client();
  ASSERT_TRUE(eventually(kPatienceMs, [&] { return notices_with("the log shrinks") != 0; }));
  put_pages(*one, 0, 8);
  EXPECT_FALSE(node_->flush(kPatienceMs));
  EXPECT_EQ(stat("ssd_flush_left_bytes"), 8 * kPageSize);
  EXPECT_EQ(notices_with("found no room"), 1U);
}

TEST_F(SsdNodeFaultsTest, ANewNamespaceIsPossibleBesideAsManyAsThereMayBe) {
  start();
  const auto one = client();
  ASSERT_EQ(one->put(key_of(1), bytes_of(1, kPageSize)), Code::kOk);
  ASSERT_TRUE(node_->flush(kPatienceMs));
  start();
  const auto two = client();
  EXPECT_EQ(found(*two, 1, 1), 1U);
  for (uint64_t n = 0; n < 66'000;) {
    const auto other = client();
    for (int i = 0; i < 1000; ++i, ++n) {
      const size_t space = other->client.open_namespace(key_of(1000 + n), "");
      std::vector<Code> codes;
      const Key key = key_of(2);
      other->client.lookup(space, {&key, 1}, {.lease = false, .prefix = false}, codes);
      ASSERT_EQ(codes.at(0), Code::kNotFound) << n;
    }
  }
  // The first has ended, with its pages; its name can be used anew.
  const auto three = client();
  EXPECT_EQ(found(*three, 1, 1), 0U);
  EXPECT_EQ(three->put(key_of(1), bytes_of(1, kPageSize)), Code::kOk);
  EXPECT_EQ(found(*three, 1, 1), 1U);
  // A connection that names it by its old number ends; the next one asks again.
  EXPECT_EQ(two->put(key_of(3), bytes_of(3, kPageSize)), Code::kUnavailable);
  ASSERT_TRUE(two->client.connect(node_->socket_path(), kPatienceMs).ok());
  EXPECT_EQ(two->put(key_of(3), bytes_of(3, kPageSize)), Code::kOk);
}

TEST_F(SsdNodeFaultsTest, ADiskThatHangsKeepsNeitherCallsNorTheEndWaiting) {
  SmallDisk disk(folder_.path(), 128 * kMiB);
  if (!disk.valid()) GTEST_SKIP() << "no file system can be mounted here";
  start_on({disk.path() + "/kv"}, {.size_limit = 48 * kMiB, .write_through = true});
  const auto one = client(2000);
  put_pages(*one, 0, 8);
  ASSERT_TRUE(settles("ssd_pages", 8));
  ASSERT_TRUE(disk.freeze());
  // Answered in time, as what it is: done, but not for certain.
  EXPECT_EQ(remove(*one, 3), Code::kTimeout);
  EXPECT_EQ(one->put(key_of(4), bytes_of(1004, kPageSize), {.replace = true}), Code::kTimeout);
  EXPECT_EQ(one->lookup(key_of(3)), Code::kNotFound);
  std::vector<uint8_t> bytes;
  EXPECT_EQ(one->get(key_of(4), bytes), Code::kOk);
  EXPECT_EQ(bytes, bytes_of(1004, kPageSize));
  // A name that is new, for the names file.
  const size_t other = one->client.open_namespace(key_of(99), "other");
  std::vector<Code> codes;
  const Key key = key_of(5);
  one->client.put(
      other, {&key, 1},
      [&](size_t, std::vector<MemorySegment>& segments) {
        segments.push_back({bytes.data(), bytes.size()});
      },
      {}, codes);
  EXPECT_EQ(codes.at(0), Code::kOk);
  EXPECT_EQ(one->client.clear(one->space).status().code(), Code::kTimeout);
  EXPECT_EQ(one->lookup(key_of(6)), Code::kNotFound);
  EXPECT_EQ(one->client.stats().connects, 1U);
  EXPECT_EQ(one->client.stats().timeouts, 3U);
  std::atomic<bool> is_gone{false};
  std::thread stopper([&] {
    node_.reset();
    is_gone = true;
  });
  EXPECT_TRUE(eventually(kPatienceMs, [&] { return is_gone.load(); }));
  ASSERT_TRUE(disk.thaw());
  stopper.join();
}

TEST_F(SsdNodeFaultsTest, WhoeverWaitsForAnAbandonedDeviceIsNotWokenForEver) {
  SmallDisk disk(folder_.path(), 32 * kMiB);
  if (!disk.valid()) GTEST_SKIP() << "no file system can be mounted here";
  auto made = BlockDevice::make({.engine = IoEngine::kThreads, .depth = 8});
  ASSERT_TRUE(made.ok());
  std::unique_ptr<BlockDevice> device = std::move(made.value());
  const auto memory = MappedMemory::make(2 * kSectorSize);
  const Fd hanging(open((disk.path() + "/file").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  const Fd quick(open("/dev/zero", O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(hanging.valid() && quick.valid() && disk.freeze());
  const auto request = [&](IoKind kind, const Fd& fd, uint64_t part) {
    return IoRequest{.kind = kind,
                     .fd = fd.get(),
                     .size = kSectorSize,
                     .parts = {{memory.address() + part * kSectorSize, kSectorSize}}};
  };
  ASSERT_TRUE(device->submit(request(IoKind::kWrite, hanging, 0)));
  ASSERT_TRUE(device->submit(request(IoKind::kRead, quick, 1)));
  pollfd event{device->event_fd(), POLLIN, 0};
  ASSERT_EQ(poll(&event, 1, static_cast<int>(kPatienceMs)), 1);
  device.reset();
  EXPECT_EQ(poll(&event, 1, 0), 0) << "the thread that hangs keeps it open";
  ASSERT_TRUE(disk.thaw());
}

// ---------------------------------------------------------------- directories that go wrong

TEST_F(SsdNodeFaultsTest, AnotherNodeOnTheDirectoryIsRefused) {
  start();
  const auto second = Node::start(testing::ssd_node_options(testing::socket_name(), {kv()}, {}));
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), Code::kBusy);
  EXPECT_NE(second.status().message().find(kv()), std::string::npos);
}

TEST_F(SsdNodeFaultsTest, ANodeWhoseDirectoryIsRemovedGoesOn) {
  start({.write_through = true});
  const auto one = client();
  put_pages(*one, 0, 8);
  ASSERT_TRUE(settles("ssd_pages", 8));
  std::filesystem::remove_all(kv());
  EXPECT_TRUE(settles("ssd_failed_directories", 1));
  EXPECT_GE(notices_with("removed from its directory"), 1U);
  EXPECT_EQ(found(*one, 0, 8), 8U) << "they are in the pool too";
  put_pages(*one, 100, 100);
  EXPECT_GT(found(*one, 100, 100), 30U);
  EXPECT_EQ(remove(*one, 0), Code::kNotFound);
  EXPECT_EQ(one->client.clear(one->space).status().code(), Code::kIo) << "a restart may undo it";
  EXPECT_EQ(found(*one, 0, 8), 0U);
  EXPECT_TRUE(node_->flush(60'000)) << "there is nothing to be written";
}

TEST_F(SsdNodeFaultsTest, AFlushThatNoDirectoryTakesSaysSoAtOnce) {
  start();
  const auto one = client();
  put_pages(*one, 0, 40);
  std::filesystem::remove_all(kv());
  ASSERT_TRUE(settles("ssd_failed_directories", 1));
  const uint64_t begun_ns = monotonic_ns();
  EXPECT_FALSE(node_->flush(60'000)) << "what is only in memory goes with the node";
  EXPECT_GT(stat("ssd_flush_left_bytes"), 30 * kPageSize);
  EXPECT_LT(monotonic_ns() - begun_ns, 30'000'000'000U) << "a flush has nothing to wait for";
}

TEST_F(SsdNodeFaultsTest, WithTwoDirectoriesOneMayFail) {
  start_on({kv("one"), kv("two")}, {.write_through = true});
  const auto one = client();
  put_pages(*one, 0, 24);
  ASSERT_TRUE(settles("ssd_pages", 24));
  std::filesystem::remove_all(kv("one"));
  ASSERT_TRUE(settles("ssd_failed_directories", 1));
  const uint64_t left = stat("ssd_pages");
  put_pages(*one, 100, 24);
  EXPECT_TRUE(eventually(kPatienceMs, [&] { return stat("ssd_pages") >= left + 12; }));
  EXPECT_EQ(found(*one, 100, 24), 24U);
  EXPECT_TRUE(node_->flush(kPatienceMs));
  start_on({kv("two")});
  EXPECT_EQ(found(*client(), 100, 24), 24U);
}

TEST_F(SsdNodeFaultsTest, AFullDiskIsGoneWithout) {
  const SmallDisk disk(folder_.path(), 40 * kMiB);
  if (!disk.valid()) GTEST_SKIP() << "no file system can be mounted here";
  // More than the disk has; nothing is left to others.
  start_on({disk.path() + "/kv"}, {.size_limit = 256 * kMiB, .write_through = true});
  const auto one = client();
  for (uint64_t n = 0; n < 300; ++n) {
    ASSERT_EQ(one->put(key_of(n), bytes_of(n, kPageSize)), Code::kOk);
    if (n % 16 != 0) continue;
    ASSERT_TRUE(eventually(kPatienceMs, [&] { return stat("ssd_writing_bytes") == 0; })) << n;
  }
  EXPECT_GT(stat("ssd_pages"), 40U);
  EXPECT_GT(found(*one, 0, 300), 50U);
  EXPECT_EQ(stat("ssd_failed_directories"), 0U);
  put_pages(*one, 1000, 20);
  EXPECT_TRUE(node_->flush(kPatienceMs));
  node_.reset();
}

TEST_F(SsdNodeFaultsTest, TheLogShrinksWhenOthersNeedTheSpace) {
  SsdSetup setup;
  setup.write_through = true;
  start(setup);
  {
    const auto one = client();
    for (uint64_t n = 0; n < 160; ++n) {
      put_pages(*one, n, 1);
      ASSERT_TRUE(eventually(kPatienceMs, [&] { return stat("ssd_writing_bytes") < 4 * kMiB; }));
    }
  }
  ASSERT_TRUE(node_->flush(kPatienceMs));
  struct stat before{};
  ASSERT_EQ(::stat(log_path().c_str(), &before), 0);
  ASSERT_GT(before.st_blocks, 36 * 2048);
  setup.free_min = UINT64_MAX / 4;  // More than there is.
  start(setup);
  const auto one = client();
  EXPECT_TRUE(eventually(kPatienceMs, [&] {
    struct stat now{};
    return ::stat(log_path().c_str(), &now) == 0 && now.st_blocks < before.st_blocks / 2;
  }));
  EXPECT_EQ(notices_with("ssd_free_min"), 1U);
  put_pages(*one, 1000, 40);
  EXPECT_EQ(found(*one, 1000, 40), 40U);
  struct stat after{};
  ASSERT_EQ(::stat(log_path().c_str(), &after), 0);
  EXPECT_LE(after.st_size, before.st_size);
}

TEST_F(SsdNodeFaultsTest, WhatMustStayFreeIsEachFileSystemsOwn) {
  auto options = testing::ssd_node_options(testing::socket_name(), {kv("one"), kv("two")}, {});
  options.ssd.directories[1].free_min_bytes = UINT64_MAX / 4;  // More than there is.
  auto started = Node::start(options);
  ASSERT_TRUE(started.ok()) << started.status().message();
  node_ = std::move(started.value());
  EXPECT_TRUE(eventually(kPatienceMs, [&] { return notices_with("ssd_free_min") != 0; }));
  EXPECT_EQ(notices_with("ssd_free_min"), 1U);
  EXPECT_EQ(notices_with(kv("two")), 1U);
}

// ---------------------------------------------------------------- the end

TEST_F(SsdNodeFaultsTest, AFlushWithNothingToDoIsOverAtOnce) {
  start();
  EXPECT_TRUE(node_->flush(kPatienceMs));
  EXPECT_TRUE(node_->flush(kPatienceMs)) << "and once more";
}

TEST_F(SsdNodeFaultsTest, ClientsAreServedWhileANodeFlushesAndAfterwards) {
  start();
  const auto one = client();
  put_pages(*one, 0, 48);
  std::atomic<bool> is_flushed{false};
  std::thread flusher([&] {
    EXPECT_TRUE(node_->flush(kPatienceMs));
    is_flushed = true;
  });
  // What is put before it has begun may push out what was there.
  EXPECT_TRUE(
      eventually(kPatienceMs, [&] { return is_flushed || stat("ssd_flush_left_bytes") != 0; }));
  const auto other = client();
  put_pages(*other, 1000, 100);
  flusher.join();
  EXPECT_EQ(stat("ssd_flush_left_bytes"), 0U);
  put_pages(*one, 2000, 10);
  EXPECT_EQ(remove(*one, 2000), Code::kOk);
  start();
  EXPECT_EQ(found(*client(), 0, 48), 48U);
}

TEST_F(SsdNodeFaultsTest, PutsDuringAFlushDoNotPushOutWhatIsNotWrittenYet) {
  SmallDisk disk(folder_.path(), 128 * kMiB);
  if (!disk.valid()) GTEST_SKIP() << "no file system can be mounted here";
  const SsdSetup setup{.size_limit = 96 * kMiB};
  start_on({disk.path() + "/kv"}, setup);
  const auto one = client();
  put_pages(*one, 0, 48);
  ASSERT_TRUE(disk.freeze());
  std::thread flusher([&] { EXPECT_TRUE(node_->flush(kPatienceMs)); });
  EXPECT_TRUE(eventually(kPatienceMs, [&] { return stat("ssd_flush_left_bytes") != 0; }));
  put_pages(*one, 1000, 100);
  EXPECT_TRUE(disk.thaw());
  flusher.join();
  EXPECT_EQ(found(*one, 0, 48), 48U);
  put_pages(*one, 2000, 100);  // Written, they are evicted as ever.
  start_on({disk.path() + "/kv"}, setup);
  EXPECT_EQ(found(*client(), 0, 48), 48U);
  node_.reset();
}

TEST_F(SsdNodeFaultsTest, AFlushEndsWithItsTimeAlsoOnADiskThatHangs) {
  SmallDisk disk(folder_.path(), 128 * kMiB);
  if (!disk.valid()) GTEST_SKIP() << "no file system can be mounted here";
  start_on({disk.path() + "/kv"}, {.size_limit = 48 * kMiB});
  put_pages(*client(), 0, 20);
  ASSERT_TRUE(disk.freeze());
  EXPECT_FALSE(node_->flush(300));
  EXPECT_GT(stat("ssd_flush_left_bytes"), 0U);
  ASSERT_TRUE(disk.thaw());
  EXPECT_TRUE(node_->flush(kPatienceMs)) << "it goes on where it was";
  node_.reset();
}

TEST_F(SsdNodeFaultsTest, RequestsThatConcernNoDiskDoNotAskTheDisks) {
  start();
  const auto one = client();
  put_pages(*one, 0, 8);
  ASSERT_TRUE(eventually(kPatienceMs, [&] { return stat("ssd_writing_bytes") == 0; }));
  // Asking a disk for completions is a system call that reads; messages are received otherwise.
  const auto read_calls = []() -> uint64_t {
    std::ifstream io("/proc/self/io");
    for (std::string name; io >> name;) {
      uint64_t count = 0;
      io >> count;
      if (name == "syscr:") return count;
    }
    return 0;
  };
  const uint64_t before = read_calls();
  if (before == 0) GTEST_SKIP() << "the kernel does not count system calls";
  for (int i = 0; i < 250; ++i) EXPECT_EQ(found(*one, 0, 8), 8U);
  EXPECT_LT(read_calls() - before, 500U) << "for 2000 pages";
}

TEST_F(SsdNodeFaultsTest, ANodeWithoutTrafficRests) {
  start();
  const auto one = client();
  put_pages(*one, 0, 100);
  ASSERT_TRUE(eventually(kPatienceMs, [&] { return stat("ssd_writing_bytes") == 0; }));
  const auto used_ms = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000 +
           (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1000;
  };
  timespec while_idle{3, 0};
  const long before = used_ms();
  nanosleep(&while_idle, nullptr);
  EXPECT_LE(used_ms() - before, 300) << "a tenth of a core, on a slow machine";
}

}  // namespace
}  // namespace hicache
