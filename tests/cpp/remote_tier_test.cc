// How long the remote tier wants a page, by a clock of the test's own: a directory and a peer that
// answer at once, the peer always that the page is on its way.
#include "store/remote_tier.h"

#include <gtest/gtest.h>

#include "net/frame.h"
#include "support.h"

namespace hicache {
namespace {

using testing::key_of;

constexpr uint64_t kPoolSize = 16 * kMiB;
constexpr uint64_t kFetchMs = 1000;
constexpr uint64_t kStartMs = 1000;
constexpr uint64_t kStepMs = 10;
constexpr uint64_t kBusyMaxMs = 64;  // From one question for a page that is busy to the next.
constexpr NamespaceDigest kSpace{};

/// One member, which has every page.
class OneMember : public DirectoryLine {
 public:
  uint64_t connection_number() const override { return 1; }

 protected:
  void submit(DirectoryOp op, std::vector<uint8_t> frame, Deadline, AnswerDone done) override {
    const ReplyHead head{.epoch = 5, .members_version = 1, .code = Code::kOk};
    std::vector<uint8_t> payload;
    WireWriter writer(payload);
    if (op == DirectoryOp::kLocate) {
      LocateRequest request;
      EXPECT_TRUE(decode(WireReader(std::span(frame).subspan(kFrameHeaderSize)), request));
      const size_t count = request.keys.size();
      encode(writer, LocateReply{head, std::vector<uint8_t>(count, 1),
                                 std::vector<Replica>(count, Replica{1, 0, kInDram, kRankGood})});
    } else {
      MemberView view{.index = 0, .state = NodeState::kLive, .page_count = 1, .member = {}};
      view.member.name = "peer";
      view.member.incarnation = 77;
      view.member.addresses = {"127.0.0.1:1"};
      encode(writer, MembersReply{head, {view}});
    }
    done(Answer{payload, 1});
  }
  void cut(uint64_t) override { ADD_FAILURE() << "the reply was not believed"; }
};

class BusyLine : public PeerLine {
 public:
  explicit BusyLine(size_t& asked) : asked_(asked) {}

  void ask(NodeOp op, std::vector<uint8_t> message, Done done) override {
    EXPECT_EQ(op, NodeOp::kLease);
    ++asked_;
    PeerKeysRequest request;
    EXPECT_TRUE(decode(WireReader(std::span(message).subspan(kFrameHeaderSize)), request));
    std::vector<PageStore::Location> locations(request.keys.size());
    for (PageStore::Location& location : locations) location.code = Code::kBusy;
    std::vector<uint8_t> payload;
    WireWriter writer(payload);
    encode_locations(writer, locations);
    auto hello = std::make_shared<PeerHelloReply>();
    hello->pool_size_bytes = kPoolSize;
    done(Answer{payload, hello});
  }
  void tell(NodeOp, std::vector<uint8_t>) override {}
  bool is_failing() const override { return false; }
  uint64_t breaks_count() const override { return 0; }
  void stop_soon() override {}
  bool has_ended() const override { return true; }

 private:
  size_t& asked_;
};

class BusyRoads : public PeerRoads {
 public:
  Result<std::unique_ptr<PeerLine>> link_to(const HostPort&, uint64_t) override {
    return std::unique_ptr<PeerLine>(std::make_unique<BusyLine>(asked));
  }
  std::unique_ptr<PeerReader> reader_of(const PeerHelloReply&, PeerReader::Done) override {
    ADD_FAILURE() << "nothing was leased";
    return nullptr;
  }

  size_t asked = 0;
};

class RemoteTierTest : public ::testing::Test {
 protected:
  RemoteTierTest()
      : store_({.capacity_bytes = kPoolSize,
                .eviction = EvictionKind::kLru,
                .seed = 1,
                .read_lease_ttl_ms = 10'000,
                .lookup_lease_ttl_ms = 10'000,
                .lookup_lease_share = 0.5,
                .hard_pin_share = 0.1,
                .reservation_ttl_ms = 10'000,
                .grow = [] { return false; }}),
        tier_({.own_name = "own",
               .own_incarnation = 1,
               .lookup_timeout_ms = 500,
               .stall_timeout_ms = 600'000,
               .fetch_timeout_ms = kFetchMs,
               .call_timeout_ms = 500,
               .staging_share = 0.5,
               .routes_max = 64,
               .peers_max = 8},
              {.store = store_, .roads = roads_, .directory = directory_, .wake = [] {}}) {
    store_.add_memory(0, kPoolSize);
    space_ = store_.space_of(store_.open_namespace(kSpace, "test").value());
    session_ = store_.open_session();
  }

  RemoteWaitId get(uint64_t patience_ms) {
    return tier_.begin_get({.session = session_,
                            .space = space_,
                            .is_prefix = false,
                            .leases = false,
                            .keys = {key_of(1)},
                            .parents = {0}},
                           patience_ms, now_ms_);
  }
  /// Lets time go by until that is settled, or to `end_ms`.
  bool is_settled_by(RemoteWaitId wait, uint64_t end_ms) {
    for (; now_ms_ <= end_ms; now_ms_ += kStepMs) {
      tier_.advance(now_ms_);
      uint64_t next_ms = UINT64_MAX;
      if (tier_.is_settled(wait, now_ms_, &next_ms)) return true;
    }
    return false;
  }

  PageStore store_;
  OneMember directory_;
  BusyRoads roads_;
  RemoteTier tier_;
  SpaceIndex space_ = 0;
  SessionIndex session_ = 0;
  uint64_t now_ms_ = kStartMs;
};

TEST_F(RemoteTierTest, APageThatDoesNotComeIsWantedForItsTimeAndNoLonger) {
  const RemoteWaitId wait = get(600'000);
  EXPECT_FALSE(is_settled_by(wait, kStartMs + kFetchMs - kStepMs));
  EXPECT_GT(roads_.asked, 2U) << "it is asked for again";
  EXPECT_TRUE(is_settled_by(wait, kStartMs + kFetchMs + kBusyMaxMs + kStepMs));
  EXPECT_TRUE(tier_.finish(wait).held.empty());
  EXPECT_EQ(tier_.pending_count(), 0U);
}

TEST_F(RemoteTierTest, WhoComesLaterHasThePageWantedLonger) {
  constexpr uint64_t kHastyMs = 300;
  constexpr uint64_t kLaterMs = 200;
  const RemoteWaitId hasty = get(kHastyMs);
  EXPECT_FALSE(is_settled_by(hasty, kStartMs + kLaterMs - kStepMs));
  const uint64_t begun_ms = now_ms_;
  const RemoteWaitId patient = get(600'000);
  EXPECT_TRUE(is_settled_by(hasty, kStartMs + kHastyMs));
  (void)tier_.finish(hasty);
  // Then the directory is asked whether it is elsewhere, which takes another such time.
  EXPECT_FALSE(is_settled_by(patient, begun_ms + 2 * kFetchMs - kStepMs));
  EXPECT_TRUE(is_settled_by(patient, begun_ms + 2 * (kFetchMs + kBusyMaxMs + kStepMs)));
  (void)tier_.finish(patient);
  EXPECT_EQ(tier_.pending_count(), 0U);
}

}  // namespace
}  // namespace hicache
