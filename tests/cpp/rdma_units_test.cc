// The parts of the RDMA transport that decide and do nothing else: options, GIDs, messages, ops.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "support.h"
#include "transfer/rdma/gid_choice.h"
#include "transfer/rdma/op_queue.h"
#include "transfer/rdma/rdma_options.h"
#include "transfer/rdma/rdma_wire.h"

namespace hicache {
namespace {

using testing::Random;

// ---- options

TEST(RdmaSettings, EachOptionIsTakenAndTheOthersStayAsTheyAre) {
  const Result<RdmaSettings> settings = parse_rdma_settings(
      R"({"gid_index": 3, "mtu": 1024, "queue_pairs": 4, "odp": true, "retry_count": 0})");
  ASSERT_TRUE(settings.ok()) << settings.status().message();
  EXPECT_EQ(settings.value().gid_index, 3);
  EXPECT_EQ(settings.value().mtu, 1024U);
  EXPECT_EQ(settings.value().queue_pairs, 4U);
  EXPECT_TRUE(settings.value().odp);
  EXPECT_EQ(settings.value().retry_count, 0);
  const RdmaSettings usual = parse_rdma_settings("").value();
  EXPECT_EQ(settings.value().queue_depth, usual.queue_depth);
  EXPECT_EQ(usual.queue_pairs, 2U);
  EXPECT_LT(usual.retry_count, 7);
}

TEST(RdmaSettings, WhatIsUnknownOrOutOfRangeIsRefusedByName) {
  for (const auto& [json, name] :
       std::map<std::string, std::string>{{R"({"mut": 1024})", "mut"},
                                          {R"({"mtu": 1500})", "mtu"},
                                          {R"({"retry_count": 7})", "retry_count"},
                                          {R"({"queue_pairs": 0})", "queue_pairs"},
                                          {R"({"queue_pairs": 1.5})", "queue_pairs"},
                                          {R"({"queue_depth": "8"})", "queue_depth"},
                                          {R"({"odp": 1})", "odp"},
                                          {R"([])", "object"},
                                          {R"({"mtu": 1024)", "RDMA options"}}) {
    const Result<RdmaSettings> settings = parse_rdma_settings(json);
    EXPECT_EQ(settings.status().code(), Code::kInvalidArgument) << json;
    EXPECT_NE(settings.status().message().find(name), std::string::npos)
        << settings.status().message();
  }
}

// ---- GIDs

Gid ipv4(uint8_t last) {
  return {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, last};
}
Gid link_local(uint8_t last) {
  return {0xfe, 0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, last};
}
Gid global_ipv6(uint8_t last) {
  return {0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last};
}

TEST(GidChoice, RoutedRoceV2IsTakenBeforeAllOthers) {
  const std::vector<GidEntry> table = {{0, link_local(1), GidKind::kRoceV1, false},
                                       {1, link_local(1), GidKind::kRoceV2, false},
                                       {2, ipv4(1), GidKind::kRoceV1, false},
                                       {3, ipv4(1), GidKind::kRoceV2, false},
                                       {4, global_ipv6(1), GidKind::kRoceV2, false}};
  EXPECT_EQ(choose_gid(table, -1)->index, 3U);
  EXPECT_EQ(choose_gid(std::span(table).first(3), -1)->index, 1U);
  EXPECT_EQ(choose_gid(std::span(table).first(1), -1)->index, 0U);
  EXPECT_FALSE(choose_gid({}, -1).has_value());
}

TEST(GidChoice, ABondIsTakenBeforeItsMembersAndANamedIndexBeforeEverything) {
  const std::vector<GidEntry> table = {{2, ipv4(1), GidKind::kRoceV2, false},
                                       {5, ipv4(2), GidKind::kRoceV2, true},
                                       {7, Gid{}, GidKind::kRoceV2, true}};
  EXPECT_EQ(choose_gid(table, -1)->index, 5U);
  EXPECT_EQ(choose_gid(table, 2)->index, 2U);
  EXPECT_FALSE(choose_gid(table, 7).has_value()) << "an empty entry";
  EXPECT_FALSE(choose_gid(table, 9).has_value());
}

TEST(GidChoice, GidsReadAsAddresses) {
  EXPECT_EQ(to_string(ipv4(9)), "::ffff:10.0.0.9");
  EXPECT_EQ(to_string(link_local(0xab)), "fe80:0000:0000:0000:0200:0000:0000:00ab");
}

// ---- messages

RailAddress address_of(uint8_t n) {
  return {ipv4(n), n, LinkLayer::kEthernet, 4096, 16};
}

struct Sample {
  std::vector<uint8_t> bytes;
  bool (*is_taken)(std::span<const uint8_t>);
};

std::vector<Sample> samples() {
  const auto is_request = [](std::span<const uint8_t> bytes) { return decode_request(bytes).ok(); };
  return {
      {encode_rails(std::vector<RailDescriptor>{{"mlx5_0", address_of(1), 100'000, true},
                                                {"mlx5_1/2", address_of(2), 200'000, false}}),
       [](std::span<const uint8_t> bytes) { return decode_rails(bytes).ok(); }},
      {encode_keys(std::vector<RailKeys>{{0, 4096, {1, 2, 3}}, {2, 1 << 20, {7}}}),
       [](std::span<const uint8_t> bytes) { return decode_keys(bytes, 12'288).ok(); }},
      {encode(ConnectRequest{42, 43, 1, address_of(3), {{0xFFFFFF, 0}, {17, 0xFFFFFF}}}),
       is_request},
      {encode(DisconnectRequest{42, 43}), is_request},
      {encode(ConnectReply{address_of(4), {{5, 6}}}),
       [](std::span<const uint8_t> bytes) { return decode_connect_reply(bytes).ok(); }},
  };
}

TEST(RdmaWire, MessagesComeBackAsTheyWere) {
  const auto rails = decode_rails(samples()[0].bytes);
  ASSERT_TRUE(rails.ok());
  EXPECT_EQ(rails.value()[1].name, "mlx5_1/2");
  EXPECT_EQ(rails.value()[1].address, address_of(2));
  EXPECT_FALSE(rails.value()[1].is_up);
  const auto keys = decode_keys(samples()[1].bytes, 12'288);
  ASSERT_TRUE(keys.ok());
  EXPECT_EQ(keys.value()[0].keys, (std::vector<uint32_t>{1, 2, 3}));
  const auto request = decode_request(samples()[2].bytes);
  ASSERT_TRUE(request.ok());
  const auto& connect = std::get<ConnectRequest>(request.value());
  EXPECT_EQ(connect.from, address_of(3));
  EXPECT_EQ(connect.pairs[1].psn, 0xFFFFFFU);
  EXPECT_TRUE(decode_request(samples()[3].bytes).ok());
  EXPECT_TRUE(decode_connect_reply(samples()[4].bytes).ok());
}

TEST(RdmaWire, CutAndLengthenedMessagesAreRefusedAndChangedOnesReadNothingElse) {
  HICACHE_TRACE_SEED();
  Random random(700);
  for (const auto& [message, is_taken] : samples()) {
    EXPECT_TRUE(is_taken(message));
    for (size_t size = 0; size < message.size(); ++size) {
      EXPECT_FALSE(is_taken(std::span(message).first(size))) << size;
    }
    std::vector<uint8_t> longer = message;
    longer.push_back(0);
    EXPECT_FALSE(is_taken(longer));
    for (int i = 0; i < 2000; ++i) {
      std::vector<uint8_t> changed = message;
      changed[random.below(changed.size())] ^= static_cast<uint8_t>(random.between(1, 255));
      (void)is_taken(changed);
    }
  }
}

TEST(RdmaWire, ValuesThatNoDeviceHasAreRefused) {
  ConnectRequest request{42, 43, 1, address_of(3), {{0x1000000, 0}}};
  EXPECT_FALSE(decode_request(encode(request)).ok()) << "a number of 25 bits";
  request.pairs = {};
  EXPECT_FALSE(decode_request(encode(request)).ok()) << "no pair";
  request.pairs.resize(kPairsMax + 1);
  EXPECT_FALSE(decode_request(encode(request)).ok()) << "too many pairs";
  request.pairs = {{1, 1}};
  request.from.mtu = 1500;
  EXPECT_FALSE(decode_request(encode(request)).ok()) << "an MTU of Ethernet";
  const std::vector<RailKeys> short_keys = {{0, 4096, {1, 2}}};
  EXPECT_TRUE(decode_keys(encode_keys(short_keys), 8192).ok());
  EXPECT_FALSE(decode_keys(encode_keys(short_keys), 8193).ok()) << "pieces without a key";
}

// ---- ops

KeyedRange range_of(uint64_t address, uint64_t piece_size, size_t count) {
  auto keys = std::make_shared<std::vector<uint32_t>>();
  for (size_t i = 0; i < count; ++i) keys->push_back(static_cast<uint32_t>(1000 + i));
  return {address, piece_size, std::move(keys)};
}

Op op_of(uint64_t local, uint64_t remote, uint64_t size, uint64_t token,
         Priority priority = Priority::kUrgent, uint64_t deadline_ns = 1000) {
  return {Direction::kRead, priority, local, 1, remote, 1, size, deadline_ns, token};
}

TEST(OpQueue, PartsCoverAnOpOnceAndNeverCrossAPieceOfEitherSide) {
  HICACHE_TRACE_SEED();
  Random random(710);
  for (int round = 0; round < 300; ++round) {
    const uint64_t local_piece = random.between(1, 5000);
    const uint64_t remote_piece = random.between(1, 5000);
    const uint64_t local = 100'000 + random.below(10'000);
    const uint64_t remote = 900'000 + random.below(10'000);
    const uint64_t size = random.between(1, 20'000);
    OpQueue queue(4, random.between(1, 4000));
    queue.add(op_of(local, remote, size, 7),
              range_of(100'000, local_piece, 30'001 / local_piece + 1),
              range_of(900'000, remote_piece, 30'001 / remote_piece + 1));
    std::vector<WorkPart> parts;
    uint64_t covered = 0;
    while (queue.has_work()) {
      const WorkPart part = queue.take();
      const WorkOrder order = queue.order(part);
      ASSERT_EQ(part.offset, covered);
      ASSERT_EQ(order.local_address, local + covered);
      ASSERT_EQ(order.local_key, 1000 + (order.local_address - 100'000) / local_piece);
      ASSERT_EQ((order.local_address - 100'000) / local_piece,
                (order.local_address + part.size - 1 - 100'000) / local_piece);
      ASSERT_EQ((order.remote_address - 900'000) / remote_piece,
                (order.remote_address + part.size - 1 - 900'000) / remote_piece);
      covered += part.size;
      parts.push_back(part);
    }
    ASSERT_EQ(covered, size);
    for (size_t i = 0; i < parts.size(); ++i) {
      ASSERT_EQ(queue.part_done(parts[i]), i + 1 == parts.size());
    }
    EXPECT_TRUE(queue.remove(parts[0].slot).status.ok());
    EXPECT_TRUE(queue.empty());
  }
}

TEST(OpQueue, UrgentOpsGoFirstAndLostPartsGoAgain) {
  OpQueue queue(4, 100);
  const auto add = [&](uint64_t token, Priority priority) {
    return queue.add(op_of(0, 0, 200, token, priority), range_of(0, 1000, 1), range_of(0, 1000, 1));
  };
  const OpSlot background = add(1, Priority::kBackground);
  const OpSlot urgent = add(2, Priority::kUrgent);
  const WorkPart first = queue.take();
  EXPECT_EQ(first.slot, urgent);
  EXPECT_FALSE(queue.part_lost(first));
  const WorkPart again = queue.take();
  EXPECT_EQ(again.slot, urgent);
  EXPECT_EQ(again.offset, first.offset);
  EXPECT_EQ(queue.take().slot, urgent);
  EXPECT_EQ(queue.take().slot, background);
}

TEST(OpQueue, AnOpThatFailsIsOverWhenNothingOfItIsUnderWay) {
  OpQueue queue(2, 100);
  const OpSlot slot = queue.add(op_of(0, 0, 300, 9), range_of(0, 1000, 1), range_of(0, 1000, 1));
  const WorkPart a = queue.take();
  const WorkPart b = queue.take();
  EXPECT_FALSE(queue.fail(slot, Status(Code::kTimeout, "late")));
  EXPECT_FALSE(queue.fail(slot, Status(Code::kCancelled, "later"))) << "the first failure counts";
  EXPECT_FALSE(queue.has_work()) << "what was not taken is dropped";
  EXPECT_FALSE(queue.part_done(a));
  EXPECT_TRUE(queue.part_lost(b));
  EXPECT_FALSE(queue.has_work()) << "what was lost is dropped";
  const OpQueue::Over over = queue.remove(slot);
  EXPECT_EQ(over.token, 9U);
  EXPECT_EQ(over.status.code(), Code::kTimeout);
}

TEST(OpQueue, DeadlinesAreThoseOfOpsThatHaveNotFailed) {
  OpQueue queue(4, 100);
  EXPECT_EQ(queue.next_deadline_ns(), UINT64_MAX);
  for (const uint64_t deadline_ns : {300, 100, 200}) {
    queue.add(op_of(0, 0, 10, deadline_ns, Priority::kUrgent, deadline_ns), range_of(0, 1000, 1),
              range_of(0, 1000, 1));
  }
  EXPECT_EQ(queue.next_deadline_ns(), 100U);
  const std::vector<OpSlot> expired = queue.expired(200);
  ASSERT_EQ(expired.size(), 2U);
  for (const OpSlot slot : expired) EXPECT_TRUE(queue.fail(slot, Status(Code::kTimeout, "late")));
  EXPECT_EQ(queue.next_deadline_ns(), 300U);
}

}  // namespace
}  // namespace hicache
