// What is particular to the local transport: its messages, the words in shared memory, and what
// strangers may do to its socket.
#include "transfer/local/local_transport.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <thread>

#include "io/unix_socket.h"
#include "net/secure_channel.h"
#include "support.h"
#include "transfer/local/local_wire.h"
#include "transfer/local/mapped_window.h"
#include "transfer/local/use_table.h"
#include "transport_contract.h"

namespace hicache {
namespace {

using testing::eventually;
using testing::Random;

const Deadline kSoon = Deadline::after_ms(600'000);  // Longer than any test.

const testing::Rig& rig_named(const std::string& name) {
  return *std::ranges::find(testing::rigs(), name, &testing::Rig::name);
}

uint64_t stat_of(const Transport& transport, const std::string& name) {
  for (const auto& [key, value] : transport.stats()) {
    if (key == name) return value;
  }
  ADD_FAILURE() << "no stat " << name;
  return 0;
}

// ---- Messages

TEST(LocalWire, WhatIsEncodedIsDecodedAndNothingElse) {
  HICACHE_TRACE_SEED();
  Random random(920);
  const LocalRange range{7, true, true, false, 12, 0x7f0000001000, 3 * kMiB + 1, 2 * kMiB};
  const std::vector<uint8_t> good = encode_local(range);
  ASSERT_EQ(good.size(), kLocalAnswerSize);
  const Result<LocalRange> decoded = decode_local_range(good);
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(encode_local(decoded.value()), good);
  EXPECT_FALSE(decode_local_welcome(good).ok());
  EXPECT_FALSE(decode_local_request(good).ok());
  for (int i = 0; i < 20'000; ++i) {
    std::vector<uint8_t> bytes = good;
    for (uint64_t n = random.between(1, 4); n > 0; --n) {
      bytes[random.below(bytes.size())] = static_cast<uint8_t>(random.bits());
    }
    const Result<LocalRange> got = decode_local_range(bytes);
    if (!got.ok()) continue;
    // What is believed is what it says, and does not wrap around.
    EXPECT_EQ(encode_local(got.value()), bytes);
    EXPECT_GE(got.value().address + got.value().size, got.value().address);
    EXPECT_LT(got.value().place, kBuffersMax);
  }
}

TEST(LocalWire, RangesThatWrapAroundOrHaveNoPlaceAreRefused) {
  const LocalRange good{7, true, true, true, 12, 4096, 4096, 0};
  ASSERT_TRUE(decode_local_range(encode_local(good)).ok());
  const auto expect_refused = [](LocalRange range) {
    EXPECT_EQ(decode_local_range(encode_local(range)).status().code(), Code::kCorrupt);
  };
  LocalRange bad = good;
  bad.address = UINT64_MAX - 100;
  expect_refused(bad);
  bad = good;
  bad.offset = UINT64_MAX - 100;
  expect_refused(bad);
  bad = good;
  bad.place = kBuffersMax;
  expect_refused(bad);
  bad = good;
  bad.buffer = kNoBuffer;
  expect_refused(bad);
  bad = good;
  bad.size = 0;
  expect_refused(bad);
}

// ---- Words in shared memory

struct Words {
  std::vector<LiveWord> live = std::vector<LiveWord>(kBuffersMax);
  std::vector<UseSlot> slots = std::vector<UseSlot>(kUseSlots);
  LivePlaces places{live.data()};
  std::atomic<bool> is_gone{false};
};

TEST(UseTable, AnOwnerWaitsForThePieceThatIsTouchedAndNobodyBeginsAfterIt) {
  Words words;
  uint32_t place = 0;
  ASSERT_TRUE(words.places.add(5, &place));
  BufferUse use(words.live[place], 5);
  ASSERT_EQ(use.begin(words.slots.data()), BufferUse::Outcome::kBegun);
  words.places.end(place, kNoBuffer);
  BufferUse late(words.live[place], 5);
  EXPECT_EQ(late.begin(words.slots.data()), BufferUse::Outcome::kGone);
  std::atomic<bool> has_returned{false};
  std::thread owner([&] {
    EXPECT_TRUE(wait_unused(words.slots.data(), 5, words.is_gone, kSoon));
    has_returned = true;
  });
  EXPECT_FALSE(has_returned);
  EXPECT_FALSE(use.end()) << "what was read meanwhile is worthless";
  owner.join();
}

TEST(UseTable, ARequesterThatDiedInAPieceIsNotWaitedFor) {
  Words words;
  words.slots[3].buffer = 9;
  std::thread owner([&] { EXPECT_TRUE(wait_unused(words.slots.data(), 9, words.is_gone, kSoon)); });
  words.is_gone = true;
  owner.join();
}

TEST(UseTable, AnOwnerWaitsUntilItsDeadlineAndNoLonger) {
  Words words;
  words.slots[63].buffer = 9;
  EXPECT_FALSE(is_unused(words.slots.data(), 9));
  bool is_over = true;
  const uint64_t took_ms = testing::duration_ms([&] {
    is_over = wait_unused(words.slots.data(), 9, words.is_gone, Deadline::after_ms(100));
  });
  EXPECT_FALSE(is_over);
  EXPECT_GE(took_ms, 99U);
  EXPECT_TRUE(is_unused(words.slots.data(), 8));
  EXPECT_TRUE(wait_unused(words.slots.data(), 8, words.is_gone, Deadline::after_ms(0)));
}

TEST(UseTable, NobodyTouchesWhatWasTakenAway) {
  Words words;
  constexpr BufferId kRounds = 3000;
  std::atomic<BufferId> current{0};
  std::atomic<uint32_t> place{0};
  uint64_t memory[kRounds + 1] = {};  // Plain: the sanitizer sees who is late.
  std::atomic<bool> is_over{false};
  std::vector<std::thread> requesters;
  std::atomic<uint64_t> touched{0};
  for (int t = 0; t < 3; ++t) {
    requesters.emplace_back([&] {
      uint64_t sum = 0;
      while (!is_over) {
        const BufferId id = current;
        if (id == kNoBuffer) continue;
        BufferUse use(words.live[place], id);
        if (use.begin(words.slots.data()) != BufferUse::Outcome::kBegun) continue;
        sum += memory[id];
        if (use.end()) ++touched;
      }
      EXPECT_LE(sum, UINT64_MAX);
    });
  }
  for (BufferId id = 1; id <= kRounds; ++id) {
    uint32_t own = 0;
    ASSERT_TRUE(words.places.add(id, &own));
    place = own;
    current = id;
    if (id % 64 == 0) EXPECT_TRUE(eventually(20'000, [&] { return touched >= id / 64; }));
    words.places.end(own, kNoBuffer);
    ASSERT_TRUE(wait_unused(words.slots.data(), id, words.is_gone, kSoon));
    memory[id] = id;  // A race if someone still reads it.
    words.places.give_back(own);
  }
  is_over = true;
  for (std::thread& requester : requesters) requester.join();
}

// ---- Mappings

TEST(MappedWindow, OnlyWhatNobodyCanShrinkIsMapped) {
  const Fd open_file(memfd_create("hicache-test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(ftruncate(open_file.get(), 8192), 0);
  const auto map = [&](uint64_t offset, uint64_t size) {
    return MappedWindow::map(open_file, offset, size, MappedWindow::Access::kRead).status().code();
  };
  EXPECT_EQ(map(0, 8192), Code::kCorrupt);
  ASSERT_EQ(fcntl(open_file.get(), F_ADD_SEALS, F_SEAL_SHRINK), 0);
  EXPECT_EQ(map(0, 8192), Code::kOk);
  EXPECT_EQ(map(100, 8000), Code::kOk);
  EXPECT_EQ(map(100, 8093), Code::kCorrupt);
  EXPECT_EQ(map(UINT64_MAX - 10, 100), Code::kCorrupt);
  EXPECT_EQ(map(0, 0), Code::kCorrupt);
}

TEST(LocalTransport, AMemfdThatMayShrinkIsReachedAsOtherMemory) {
  const auto end = rig_named("LocalShared").make_end(random_token(), "x");
  const Fd file(memfd_create("hicache-test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(ftruncate(file.get(), 8192), 0);
  const Buffer buffer{5, 4096, 8192, MemoryKind::kHost, "*", true, file.get(), 0};
  EXPECT_EQ(end->transport().register_buffer(buffer).value(), encode_local_key(false));
  end->transport().unregister_buffer(5);
  Buffer longer = buffer;
  longer.size = 8193;
  EXPECT_EQ(end->transport().register_buffer(longer).status().code(), Code::kInvalidArgument);
  ASSERT_EQ(fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK), 0);
  EXPECT_EQ(end->transport().register_buffer(buffer).value(), encode_local_key(true));
}

// ---- Requesters that stop

/// A requester that holds slots as one does that was stopped in the middle of a piece.
class StoppedRequester {
 public:
  explicit StoppedRequester(uint64_t epoch, const std::string& secret)
      : socket_(std::move(unix_connect(local_socket_name(epoch)).value())) {
    const Greeting greeting{Purpose::kLocal, epoch};
    std::array<uint8_t, kLocalAnswerSize> bytes;
    std::array<Fd, 2> passed;
    EXPECT_TRUE(greet_server(socket_, secret_from_text(secret), greeting, kSoon).ok());
    EXPECT_TRUE(send_all(socket_, encode_local(LocalRequest{LocalOp::kHello}), kSoon).ok());
    EXPECT_TRUE(receive_all(socket_, bytes, kSoon, passed).ok());
    EXPECT_TRUE(decode_local_welcome(bytes).ok());
    window_ = std::move(
        MappedWindow::map(passed[1], 0, kUseSlotsSize, MappedWindow::Access::kWrite).value());
  }
  void touch(size_t slot, BufferId buffer) {
    reinterpret_cast<UseSlot*>(window_.address())[slot].buffer = buffer;
  }
  void leave() { socket_.reset(); }

 private:
  Fd socket_;
  MappedWindow window_;
};

TEST(LocalTransport, OneThatIsStoppedInAPieceIsWaitedForASecondAndNamed) {
  const auto end = rig_named("LocalPrivate").make_end(random_token(), testing::Client::kSecret);
  Transport& transport = end->transport();
  std::vector<uint8_t> memory(4096);
  const auto address = reinterpret_cast<uint64_t>(memory.data());
  for (BufferId id = 101; id <= 104; ++id) {
    const Buffer buffer{id, address, memory.size(), MemoryKind::kHost, "*", true, -1, 0};
    ASSERT_TRUE(transport.register_buffer(buffer).ok());
  }
  StoppedRequester requester(end->epoch(), testing::Client::kSecret);
  for (BufferId id = 101; id <= 103; ++id) requester.touch(id - 101, id);
  const auto unregister = [&](BufferId id) {
    return testing::duration_ms([&] { transport.unregister_buffer(id); });
  };
  const uint64_t took_ms = unregister(101);
  EXPECT_GE(took_ms, 900U);
  EXPECT_LT(took_ms, 3000U);
  const Status status = transport.untouched(101);
  EXPECT_EQ(status.code(), Code::kTimeout);
  EXPECT_NE(status.message().find("process " + std::to_string(getpid())), std::string::npos)
      << status.message();
  EXPECT_LT(unregister(102), 500U) << "waited for once, not for each buffer";
  EXPECT_EQ(transport.untouched(102).code(), Code::kTimeout);
  EXPECT_LT(unregister(104), 500U);
  EXPECT_TRUE(transport.untouched(104).ok()) << "which it does not touch";
  // It goes on, as far as one buffer is concerned; with its connection the rest ends.
  requester.touch(0, kNoBuffer);
  EXPECT_TRUE(transport.untouched(101).ok());
  EXPECT_EQ(transport.untouched(102).code(), Code::kTimeout);
  requester.leave();
  EXPECT_TRUE(eventually(20'000, [&] { return transport.untouched(102).ok(); }));
  EXPECT_LT(unregister(103), 500U);
  EXPECT_TRUE(transport.untouched(103).ok());
}

TEST(LocalTransport, OneThatIsStoppedInAPieceHoldsUpNoOtherRequester) {
  const auto end = rig_named("LocalPrivate").make_end(random_token(), testing::Client::kSecret);
  std::vector<uint8_t> memory(4096);
  const Buffer buffer{101,
                      reinterpret_cast<uint64_t>(memory.data()),
                      memory.size(),
                      MemoryKind::kHost,
                      "*",
                      true,
                      -1,
                      0};
  ASSERT_TRUE(end->transport().register_buffer(buffer).ok());
  StoppedRequester requester(end->epoch(), testing::Client::kSecret);
  requester.touch(5, 101);
  const uint64_t took_ms = testing::duration_ms([&] {
    std::thread removing([&] { end->transport().unregister_buffer(101); });
    // Meanwhile others come, ask and go.
    StoppedRequester other(end->epoch(), testing::Client::kSecret);
    other.leave();
    removing.join();
  });
  EXPECT_LT(took_ms, 3000U);
}

// ---- Strangers

TEST(LocalTransport, StrangersAtItsSocketAreClosedAndCounted) {
  HICACHE_TRACE_SEED();
  Random random(930);
  const testing::Rig& rig = rig_named("LocalPrivate");
  const auto end = rig.make_end(random_token(), testing::Client::kSecret);
  const std::string socket_name = local_socket_name(end->epoch());
  const auto expect_closed = [&](const std::vector<uint8_t>& bytes, bool is_greeted) {
    Result<Fd> socket = unix_connect(socket_name);
    ASSERT_TRUE(socket.ok()) << socket.status().message();
    if (is_greeted) {
      const Secret secret = secret_from_text(testing::Client::kSecret);
      const Greeting greeting{Purpose::kLocal, end->epoch()};
      ASSERT_TRUE(greet_server(socket.value(), secret, greeting, Deadline::after_ms(5000)).ok());
    }
    (void)send_all(socket.value(), bytes, Deadline::after_ms(5000));
    EXPECT_TRUE(wait_closed(socket.value(), 5000));
  };
  for (int i = 0; i < 50; ++i) {
    std::vector<uint8_t> bytes(random.between(48, 200));
    random.fill(bytes);
    expect_closed(bytes, false);
    expect_closed(bytes, true);
  }
  // One that is greeted and asks before it says hello, and one with another purpose.
  expect_closed(encode_local(LocalRequest{LocalOp::kWant, 1}), true);
  Result<Fd> socket = unix_connect(socket_name);
  ASSERT_TRUE(socket.ok());
  (void)greet_server(socket.value(), secret_from_text(testing::Client::kSecret),
                     {Purpose::kTcpLane, end->epoch()}, Deadline::after_ms(5000));
  EXPECT_TRUE(wait_closed(socket.value(), 5000));
  EXPECT_EQ(stat_of(end->transport(), "refused"), 51U);
  EXPECT_EQ(stat_of(end->transport(), "hostile"), 51U);
  EXPECT_EQ(stat_of(end->transport(), "requesters"), 0U);
}

TEST(LocalTransport, ARequesterIsForgottenWithItsPath) {
  const testing::Rig& rig = rig_named("LocalShared");
  const auto end = rig.make_end(random_token(), testing::Client::kSecret);
  testing::Client client(rig);
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(client.open(end->describe()).ok());
    EXPECT_EQ(stat_of(end->transport(), "requesters"), 1U);
    client.drop_path();
    EXPECT_TRUE(eventually(20'000, [&] { return stat_of(end->transport(), "requesters") == 0; }));
  }
}

}  // namespace
}  // namespace hicache
