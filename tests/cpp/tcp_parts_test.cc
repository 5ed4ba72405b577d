// The pieces of the TCP transport by themselves: the table of ops, the table of ranges, the loop,
// and the two halves of a lane over a socket pair.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <xxhash.h>

#include <deque>
#include <map>
#include <thread>

#include "io/event_fd.h"
#include "io/io_loop.h"
#include "support.h"
#include "transfer/tcp/frame_receiver.h"
#include "transfer/tcp/frame_sender.h"
#include "transfer/tcp/op_table.h"
#include "transfer/tcp/range_table.h"
#include "transfer/tcp/slice_checksum.h"

namespace hicache {
namespace {

using testing::bytes_of;
using testing::Random;

// ---- ops

/// What the table must say, kept the slow way: per op, which bytes are where.
struct OpOracle {
  Op op;
  uint64_t cut = 0;
  int under_way = 0;
  bool has_failed = false;
  int completions = 0;
};

void note_done(std::map<uint64_t, OpOracle>& oracle, std::vector<OpDone>& done) {
  for (const OpDone& one : done) {
    OpOracle& entry = oracle.at(one.token);
    ++entry.completions;
    EXPECT_EQ(entry.under_way, 0);
    EXPECT_EQ(one.status.ok(), !entry.has_failed);
    EXPECT_TRUE(entry.has_failed || entry.cut == entry.op.size);
  }
  done.clear();
}

TEST(TcpOpTable, EachByteIsCutOnceAndEachOpCompletesOnce) {
  HICACHE_TRACE_SEED();
  Random random(530);
  for (int round = 0; round < 50; ++round) {
    const uint64_t part_size = random.between(1, 1000);
    OpTable table(random.between(1, 20), part_size);
    std::map<uint64_t, OpOracle> oracle;
    std::vector<OpPart> parts;
    std::vector<uint64_t> tokens;
    std::vector<OpDone> done;
    uint64_t next_token = 0;
    for (int step = 0; step < 2000; ++step) {
      const auto priority = random.one_in(2) ? Priority::kUrgent : Priority::kBackground;
      switch (random.below(20)) {
        case 0: {  // Some deadlines come.
          const uint64_t now_ns = random.between(1, 1000);
          for (auto& [token, entry] : oracle) {
            if (entry.cut < entry.op.size && entry.op.deadline_ns <= now_ns) {
              entry.has_failed = true;
            }
          }
          table.expire(now_ns, done);
          break;
        }
        case 1:
        case 2:
        case 3:
        case 4: {
          const Op op{.direction = Direction::kRead,
                      .priority = priority,
                      .local_address = 1'000'000 * next_token,
                      .local_buffer = 0,
                      .remote_address = 7'000'000 * next_token,
                      .remote_buffer = 1,
                      .size = random.between(1, 5000),
                      .deadline_ns = random.between(500, 100'000),
                      .token = next_token};
          if (table.add(op)) oracle[next_token++].op = op;
          break;
        }
        case 5:
        case 6:
        case 7:
        case 8:
        case 9:
        case 10: {
          if (!table.has_queued(priority)) break;
          const OpPart part = table.take(priority);
          const uint64_t token = part.local_address / 1'000'000;
          OpOracle& entry = oracle.at(token);
          EXPECT_EQ(part.priority, priority);
          EXPECT_FALSE(entry.has_failed) << "nothing more is cut after a failure";
          EXPECT_EQ(part.local_address - entry.op.local_address, entry.cut);
          EXPECT_EQ(part.remote_address - entry.op.remote_address, entry.cut);
          EXPECT_EQ(part.size, std::min(part_size, entry.op.size - entry.cut));
          entry.cut += part.size;
          ++entry.under_way;
          parts.push_back(part);
          tokens.push_back(token);
          break;
        }
        default: {
          if (parts.empty()) break;
          const uint64_t index = random.below(parts.size());
          OpOracle& entry = oracle.at(tokens[index]);
          const bool is_ok = !random.one_in(10);
          entry.has_failed |= !is_ok;
          --entry.under_way;
          table.finish(parts[index].op, is_ok ? Status() : Status(Code::kIo, "broke"), done);
          parts.erase(parts.begin() + static_cast<ptrdiff_t>(index));
          tokens.erase(tokens.begin() + static_cast<ptrdiff_t>(index));
        }
      }
      note_done(oracle, done);
    }
    for (auto& [token, entry] : oracle) entry.has_failed |= entry.cut < entry.op.size;
    table.fail_queued(Status(Code::kCancelled, "the end"), done);
    note_done(oracle, done);
    for (size_t i = 0; i < parts.size(); ++i) {
      --oracle.at(tokens[i]).under_way;
      table.finish(parts[i].op, Status(), done);
      note_done(oracle, done);
    }
    EXPECT_TRUE(table.empty());
    for (const auto& [token, entry] : oracle) EXPECT_EQ(entry.completions, 1) << token;
  }
}

// ---- ranges

TEST(TcpRangeTable, AUseIsGivenForWhatLiesInsideAlone) {
  HICACHE_TRACE_SEED();
  Random random(531);
  RangeTable table;
  const Buffer buffer{5, 1000, 500, MemoryKind::kHost, "*", false, -1, 0};
  ASSERT_TRUE(table.add(buffer).ok());
  for (int i = 0; i < 100'000; ++i) {
    const uint64_t address = random.between(900, 1600);
    const uint64_t size = random.one_in(10) ? random.bits() : random.between(1, 600);
    const bool is_inside = address >= 1000 && size <= 500 && address + size <= 1500;
    EXPECT_EQ(static_cast<bool>(table.use(5, address, size, RangeTable::Access::kRead)), is_inside);
    EXPECT_FALSE(table.use(5, address, size, RangeTable::Access::kWrite));
    EXPECT_FALSE(table.use(6, address, size, RangeTable::Access::kRead));
  }
}

TEST(TcpRangeTable, RemovingWaitsForUsesAndGivesNoNewOnes) {
  RangeTable table;
  ASSERT_TRUE(table.add({5, 1000, 500, MemoryKind::kHost, "*", true, -1, 0}).ok());
  RangeTable::Use use = table.use(5, 1000, 500, RangeTable::Access::kWrite);
  ASSERT_TRUE(use);
  std::atomic<bool> is_removed{false};
  std::thread remover([&] {
    table.remove(5);
    is_removed = true;
  });
  EXPECT_TRUE(
      testing::eventually(5000, [&] { return !table.use(5, 1000, 1, RangeTable::Access::kRead); }));
  EXPECT_FALSE(is_removed);
  use.end();
  remover.join();
  EXPECT_TRUE(is_removed);
}

// ---- the loop

TEST(TcpIoLoop, CallsSourcesAtTheirTimeAndWhenTheyAreReady) {
  class Counting : public IoLoop::Source {
   public:
    void on_events(uint32_t) override {
      event.clear();
      ++events;
    }
    uint64_t on_time(uint64_t now_ns) override {
      called_ns = now_ns;
      return IoLoop::kNever;
    }
    EventFd event = EventFd::make();
    std::atomic<int> events{0};
    std::atomic<uint64_t> called_ns{0};
  };
  auto started = IoLoop::start("test-loop");
  ASSERT_TRUE(started.ok());
  IoLoop& loop = *started.value();
  auto source = std::make_shared<Counting>();
  const Result<uint64_t> id = loop.add(source->event.get(), EPOLLIN, source);
  ASSERT_TRUE(id.ok());
  source->event.signal();
  EXPECT_TRUE(testing::eventually(20'000, [&] { return source->events == 1; }));
  const uint64_t wanted_ns = monotonic_ns() + 50'000'000;
  loop.wake_by(wanted_ns + 10'000'000'000);
  loop.wake_by(wanted_ns);
  EXPECT_TRUE(testing::eventually(20'000, [&] { return source->called_ns != 0; }));
  EXPECT_GE(source->called_ns, wanted_ns);
  std::atomic<bool> is_removed{false};
  loop.post([&] {
    loop.remove(id.value(), source->event.get());
    is_removed = true;
  });
  EXPECT_TRUE(testing::eventually(20'000, [&] { return is_removed.load(); }));
  EXPECT_EQ(source.use_count(), 1);
}

// ---- checksums

TEST(TcpSliceChecksum, IsXxh3HoweverThePayloadIsCut) {
  HICACHE_TRACE_SEED();
  Random random(532);
  for (int round = 0; round < 300; ++round) {
    const std::vector<uint8_t> bytes = bytes_of(random.bits(), random.size_up_to(100'000));
    const uint64_t expected = XXH3_64bits(bytes.data(), bytes.size());
    EXPECT_EQ(SliceChecksum::of(bytes.data(), bytes.size()), expected);
    SliceChecksum sum;
    sum.start();
    for (size_t offset = 0; offset < bytes.size();) {
      const size_t size = std::min(bytes.size() - offset, random.size_up_to(50'000));
      sum.add(bytes.data() + offset, size);
      offset += size;
    }
    EXPECT_EQ(sum.finish(), expected);
  }
}

// ---- sender and receiver

constexpr uint64_t kEpoch = 42;

/// Takes frames, with room for one payload at a time; leaves some alone.
class Collector : public FrameReceiver::Taker {
 public:
  explicit Collector(Random& random) : random_(random) {}

  bool on_header(const TcpFrame& frame) override {
    frame_ = frame;
    is_wanted_ = !random_.one_in(5);
    payload_.assign(frame.payload_size(), 0);
    expected_offset_ = 0;
    return true;
  }
  uint8_t* begin_piece(uint64_t offset, uint64_t size) override {
    EXPECT_FALSE(is_in_piece_);
    EXPECT_GE(offset, expected_offset_);
    EXPECT_LE(offset + size, payload_.size());
    expected_offset_ = offset;
    is_in_piece_ = true;
    return is_wanted_ ? payload_.data() + offset : nullptr;
  }
  void end_piece() override { is_in_piece_ = false; }
  bool on_frame(bool is_intact) override {
    EXPECT_FALSE(is_in_piece_);
    EXPECT_TRUE(is_intact);
    frames.push_back(frame_);
    if (is_wanted_) payloads[frame_.sequence] = payload_;
    return true;
  }

  std::vector<TcpFrame> frames;
  std::map<uint64_t, std::vector<uint8_t>> payloads;

 private:
  Random& random_;
  TcpFrame frame_{};
  std::vector<uint8_t> payload_;
  uint64_t expected_offset_ = 0;
  bool is_wanted_ = true;
  bool is_in_piece_ = false;
};

TEST(TcpFrameStream, FramesArriveAsTheyWereSentHoweverTheSocketCutsThem) {
  HICACHE_TRACE_SEED();
  Random random(533);
  for (int round = 0; round < 20; ++round) {
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
    const Fd in(ends[0]);
    const Fd out(ends[1]);
    const int buffer_size = static_cast<int>(random.between(1, 200'000));
    setsockopt(out.get(), SOL_SOCKET, SO_SNDBUF, &buffer_size, sizeof(buffer_size));
    Collector collector(random);
    FrameSender sender;
    FrameReceiver receiver(collector, kEpoch);
    std::vector<uint8_t> scrap(kKiB);
    std::vector<TcpFrame> sent;
    std::deque<std::vector<uint8_t>> payloads;
    while (sent.size() < 200 || collector.frames.size() < sent.size()) {
      while (sent.size() < 200 && sender.has_room() && !random.one_in(3)) {
        const bool is_write = random.one_in(2);
        const uint64_t size = random.size_up_to(random.one_in(20) ? kMiB : 20'000);
        const TcpFrame frame{.kind = is_write ? FrameKind::kWrite : FrameKind::kRead,
                             .flags = random.one_in(2) ? kFlagChecksum : uint8_t{0},
                             .buffer = 1,
                             .sequence = sent.size() + 1,
                             .size = size};
        payloads.push_back(bytes_of(frame.sequence, frame.payload_size()));
        sender.push(frame, reinterpret_cast<uint64_t>(payloads.back().data()), kEpoch);
        sent.push_back(frame);
      }
      if (!sender.empty()) {
        ASSERT_NE(sender.send(out.get()), FrameSender::Outcome::kBroken);
      }
      const auto outcome = receiver.receive(in.get(), random.size_up_to(kMiB), scrap);
      ASSERT_TRUE(outcome == FrameReceiver::Outcome::kDrained ||
                  outcome == FrameReceiver::Outcome::kMore);
    }
    EXPECT_TRUE(collector.frames == sent);
    for (const auto& [sequence, payload] : collector.payloads) {
      EXPECT_TRUE(payload == payloads[sequence - 1]) << sequence;
    }
  }
}

TEST(TcpFrameStream, AFlippedBitOfAPayloadIsNoticedByItsChecksum) {
  HICACHE_TRACE_SEED();
  Random random(534);
  class Verdict : public FrameReceiver::Taker {
   public:
    bool on_header(const TcpFrame& frame) override {
      payload.resize(frame.size);
      return true;
    }
    uint8_t* begin_piece(uint64_t offset, uint64_t) override { return payload.data() + offset; }
    void end_piece() override {}
    bool on_frame(bool is_intact) override {
      (is_intact ? intact : damaged) += 1;
      return true;
    }
    std::vector<uint8_t> payload;
    int intact = 0;
    int damaged = 0;
  } verdict;
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
  const Fd in(ends[0]);
  const Fd out(ends[1]);
  FrameReceiver receiver(verdict, kEpoch);
  std::vector<uint8_t> scrap(kKiB);
  for (uint64_t i = 1; i <= 200; ++i) {
    const std::vector<uint8_t> payload = bytes_of(i, random.size_up_to(30'000));
    const TcpHeaderBytes header = encode_tcp_frame({.kind = FrameKind::kWrite,
                                                    .flags = kFlagChecksum,
                                                    .buffer = 1,
                                                    .sequence = i,
                                                    .size = payload.size()},
                                                   kEpoch);
    std::vector<uint8_t> stream(header.begin(), header.end());
    stream.insert(stream.end(), payload.begin(), payload.end());
    const uint64_t trailer = XXH3_64bits(payload.data(), payload.size());
    stream.resize(stream.size() + kTcpTrailerSize);
    std::memcpy(stream.data() + stream.size() - kTcpTrailerSize, &trailer, kTcpTrailerSize);
    if (i % 2 == 0) {
      stream[random.between(kTcpHeaderSize, stream.size() - 1)] ^=
          static_cast<uint8_t>(1 << random.below(8));
    }
    ASSERT_EQ(send(out.get(), stream.data(), stream.size(), 0),
              static_cast<ssize_t>(stream.size()));
    ASSERT_EQ(receiver.receive(in.get(), 10 * kMiB, scrap), FrameReceiver::Outcome::kDrained);
  }
  EXPECT_EQ(verdict.intact, 100);
  EXPECT_EQ(verdict.damaged, 100);
}

}  // namespace
}  // namespace hicache
