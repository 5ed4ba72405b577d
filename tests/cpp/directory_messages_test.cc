// The directory's messages: what is written is read again; what is cut, changed or too large is
// refused.
#include "directory/directory_messages.h"

#include <gtest/gtest.h>

#include "directory_samples.h"

namespace hicache {
namespace {

using namespace testing;  // NOLINT: the rig's words.

template <typename Message>
bool is_taken(const Message& message) {
  std::vector<uint8_t> bytes;
  WireWriter writer(bytes);
  encode(writer, message);
  Message read;
  return decode(WireReader(bytes), read);
}

TEST(DirectoryMessages, ReadBackEqual) {
  for (const Sample& sample : directory_samples()) {
    SCOPED_TRACE(sample.name);
    EXPECT_EQ(sample.decode_and_encode(sample.bytes), sample.bytes);
  }
}

TEST(DirectoryMessages, TruncatedAnywhereAreRefused) {
  for (const Sample& sample : directory_samples()) {
    SCOPED_TRACE(sample.name);
    for (size_t size = 0; size < sample.bytes.size(); ++size) {
      // A copy of exactly that size: reading beyond it is an error that sanitizers see.
      const std::vector<uint8_t> cut(sample.bytes.begin(),
                                     sample.bytes.begin() + static_cast<ptrdiff_t>(size));
      EXPECT_FALSE(sample.decode_and_encode(cut).has_value()) << size;
    }
    std::vector<uint8_t> longer = sample.bytes;
    longer.push_back(0);
    EXPECT_FALSE(sample.decode_and_encode(longer).has_value());
  }
}

TEST(DirectoryMessages, MutatedOnesAreReadAsTheyAreOrRefused) {
  HICACHE_TRACE_SEED();
  Random random(71);
  for (const Sample& sample : directory_samples()) {
    SCOPED_TRACE(sample.name);
    for (int round = 0; round < 3000; ++round) {
      std::vector<uint8_t> bytes = sample.bytes;
      for (uint64_t flips = random.between(1, 4); flips > 0; --flips) {
        bytes[random.below(bytes.size())] = static_cast<uint8_t>(random.bits());
      }
      const auto again = sample.decode_and_encode(bytes);
      if (again) {
        ASSERT_EQ(*again, bytes);
      }
    }
  }
}

TEST(DirectoryMessages, BoundsHold) {
  BatchRequest batch;
  batch.changes.resize(kChangesMax);
  EXPECT_TRUE(is_taken(batch));
  batch.changes[0].tiers = kTiersMax + 1;
  EXPECT_FALSE(is_taken(batch));
  batch.changes.assign(kChangesMax + 1, {});
  EXPECT_FALSE(is_taken(batch));

  LocateRequest locate;
  locate.keys.resize(kLocateKeysMax);
  EXPECT_TRUE(is_taken(locate));
  for (const size_t replicas_max : {size_t{0}, kReplicasMax + 1}) {
    locate.replicas_max = static_cast<uint8_t>(replicas_max);
    EXPECT_FALSE(is_taken(locate));
  }
  locate.replicas_max = 1;
  locate.keys.resize(kLocateKeysMax + 1);
  EXPECT_FALSE(is_taken(locate));

  JoinRequest join{0, member_of("a")};
  join.member.addresses.assign(kNodeAddressesMax + 1, "x");
  EXPECT_FALSE(is_taken(join));
  join.member = member_of(std::string(kNodeTextSizeMax + 1, 'a'));
  EXPECT_FALSE(is_taken(join));

  HeartbeatReply reply;
  reply.orders.resize(kOrdersMax + 1);
  EXPECT_FALSE(is_taken(reply));
  EXPECT_FALSE(is_taken(MembersReply{{}, std::vector<MemberView>(kNodesMax + 1)}));
}

TEST(DirectoryMessages, RepliesThatContradictThemselvesAreRefused) {
  const Replica good{1, 2, kInDram, kRankGood};
  EXPECT_TRUE(is_taken(LocateReply{{}, {1}, {good}}));
  EXPECT_FALSE(is_taken(LocateReply{{}, {2}, {good}}));
  EXPECT_FALSE(is_taken(LocateReply{{}, {}, {good}}));
  for (const Replica& bad : {Replica{1, kNodesMax, kInDram, kRankGood}, Replica{1, 2, 0, kRankGood},
                             Replica{1, 2, kTiersMax + 1, 0}, Replica{1, 2, kInDram, kRankCount}}) {
    EXPECT_FALSE(is_taken(LocateReply{{}, {1}, {bad}}));
  }
  JoinReply join;
  EXPECT_FALSE(is_taken(join)) << "joined as nobody";
  join.head.code = Code::kNoSpace;
  EXPECT_TRUE(is_taken(join));
}

TEST(DirectoryMessages, TheLargestRequestsFitTheirBound) {
  BatchRequest batch;
  batch.changes.resize(kChangesMax);
  LocateRequest locate;
  locate.keys.resize(kLocateKeysMax);
  std::vector<uint8_t> bytes;
  WireWriter writer(bytes);
  encode(writer, batch);
  EXPECT_LE(bytes.size(), kDirectoryRequestSizeMax);
  bytes.clear();
  encode(writer, locate);
  EXPECT_LE(bytes.size(), kDirectoryRequestSizeMax);
}

}  // namespace
}  // namespace hicache
