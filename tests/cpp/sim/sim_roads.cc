#include "sim/sim_roads.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "sim/sim_line.h"
#include "sim/sim_pages.h"
#include "store/page_mover.h"

namespace hicache::testing {
namespace {

constexpr uint64_t kCallTimeoutUs = 500'000;
constexpr uint64_t kBackOffMinMs = 50;
constexpr uint64_t kBackOffMaxMs = 400;

/// Shared with the events that it has made, which may come after its end.
struct LinkState : std::enable_shared_from_this<LinkState> {
  struct Call {
    NodeOp op;
    std::vector<uint8_t> message;
    PeerLine::Done done;
  };

  LinkState(World& in, Host& of, std::string name, uint16_t to, uint64_t life, SimRoads::Find who)
      : world(in), owner(of), own_name(std::move(name)), port(to), incarnation(life), find(who) {}

  World& world;
  Host& owner;
  std::string own_name;
  uint16_t port;
  uint64_t incarnation;
  SimRoads::Find find;
  StreamRef stream{};
  std::shared_ptr<const PeerHelloReply> peer{};
  bool is_connecting = false;
  uint64_t tries = 0;  // What an earlier one comes to is of no interest.
  bool is_stopped = false;
  uint64_t last_id = 0;
  std::map<uint64_t, Call> calls{};
  uint64_t closed_until_ns = 0;
  uint64_t back_off_ms = kBackOffMinMs;
  uint64_t breaks_count = 0;

  bool is_failing() const { return monotonic_ns() < closed_until_ns; }

  void ask(NodeOp op, const std::vector<uint8_t>& message, const PeerLine::Done& done) {
    if (is_stopped) return done(Status(Code::kClosed, "stopped"));
    if (is_failing()) return done(Status(Code::kUnavailable, "left alone"));
    const uint64_t id = ++last_id;
    calls.emplace(id, Call{op, message, done});
    world.after_us(owner, kCallTimeoutUs, [self = shared_from_this(), id] {
      if (self->calls.contains(id)) self->fail(Status(Code::kTimeout, "no answer in time"));
    });
    if (peer) return send(id, op, message);
    if (!stream && !std::exchange(is_connecting, true)) connect();
  }

  void tell(NodeOp op, const std::vector<uint8_t>& message) {
    if (peer) send(++last_id, op, message);
  }

  void send(uint64_t id, NodeOp op, const std::vector<uint8_t>& frame) {
    stream->send(0, message_of(static_cast<uint16_t>(op), id, frame));
  }

  void connect() {
    const Neighbour* there = find(port);
    if (there == nullptr) {
      world.after_us(owner, 500, [self = shared_from_this(), tries = tries] {
        if (tries == self->tries) self->fail(Status(Code::kUnavailable, "nobody is there"));
      });
      return;
    }
    world.connect(owner, *there->host, [self = shared_from_this(), tries = tries](StreamRef made) {
      const bool is_wanted = tries == self->tries && !self->is_stopped;
      if (made && !is_wanted) made->close(0);
      if (!is_wanted) return;
      self->is_connecting = false;
      const Neighbour* greeted = self->find(self->port);
      const bool is_meant =
          made != nullptr && greeted != nullptr && greeted->incarnation == self->incarnation;
      if (made && !is_meant) made->close(0);
      if (!is_meant) return self->fail(Status(Code::kUnavailable, "another one is there"));
      self->greet(made);
    });
  }

  void greet(const StreamRef& made) {
    stream = made;
    stream->listen(
        0, [self = shared_from_this()](const Message& message) { self->take(message); },
        [self = shared_from_this()] { self->fail(Status(Code::kUnavailable, "it broke off")); });
    std::vector<uint8_t> hello;
    begin_frame(hello);
    WireWriter writer(hello);
    encode(writer, PeerHello{own_name});
    send(0, NodeOp::kHello, hello);
  }

  void take(const Message& message) {
    if (!peer) {
      PeerHelloReply hello;
      if (!decode(WireReader(message.payload), hello) || hello.incarnation != incarnation) {
        return fail(Status(Code::kCorrupt, "no hello"));
      }
      peer = std::make_shared<const PeerHelloReply>(hello);
      for (const auto& [id, call] : calls) send(id, call.op, call.message);
      return;
    }
    const auto found = calls.find(message.id);
    if (found == calls.end()) return world.fail("a peer answers what was not asked");
    const PeerLine::Done done = std::move(found->second.done);
    calls.erase(found);
    back_off_ms = kBackOffMinMs;
    done(PeerLine::Answer{message.payload, peer});
  }

  void fail(const Status& status) {
    if (stream) stream->close(0);
    stream.reset();
    peer.reset();
    is_connecting = false;
    ++tries;
    if (!is_stopped) {
      closed_until_ns = monotonic_ns() + back_off_ms * 1'000'000;
      back_off_ms = std::min(2 * back_off_ms, kBackOffMaxMs);
      ++breaks_count;
    }
    for (const auto& [id, call] : std::exchange(calls, {})) call.done(status);
  }
};

class SimLink : public PeerLine {
 public:
  explicit SimLink(std::shared_ptr<LinkState> state) : state_(std::move(state)) {}
  ~SimLink() override {
    state_->is_stopped = true;
    state_->calls.clear();
    if (state_->stream) state_->stream->close(0);
  }

  void ask(NodeOp op, std::vector<uint8_t> message, Done done) override {
    state_->ask(op, message, done);
  }
  void tell(NodeOp op, std::vector<uint8_t> message) override { state_->tell(op, message); }
  bool is_failing() const override { return state_->is_failing(); }
  uint64_t breaks_count() const override { return state_->breaks_count; }
  void stop_soon() override {
    if (std::exchange(state_->is_stopped, true)) return;
    state_->fail(Status(Code::kClosed, "stopped"));
  }
  bool has_ended() const override { return state_->is_stopped; }

 private:
  std::shared_ptr<LinkState> state_;
};

/// Likewise.
struct ReaderState : std::enable_shared_from_this<ReaderState> {
  ReaderState(World& in, Host& of, uint8_t* into, uint16_t from, uint64_t life, SimRoads::Find who,
              PeerReader::Done tell_it)
      : world(in),
        owner(of),
        pool(into),
        port(from),
        incarnation(life),
        find(std::move(who)),
        done(std::move(tell_it)) {}

  World& world;
  Host& owner;
  uint8_t* pool;
  uint16_t port;
  uint64_t incarnation;
  SimRoads::Find find;
  PeerReader::Done done;
  size_t in_flight = 0;
  bool is_stopped = false;

  void read(std::vector<PeerReader::Page> pages, uint64_t deadline_ns) {
    ++in_flight;
    const bool is_slow = world.chance(world.faults().slow_read);
    const auto pause_us = [&] {
      return is_slow ? world.random().size_up_to(4'000'000) : world.random().between(50, 2000);
    };
    const uint64_t first_us = pause_us();
    const uint64_t second_us = pause_us();
    const uint64_t left_us =
        deadline_ns > monotonic_ns() ? (deadline_ns - monotonic_ns()) / 1000 : 0;
    const bool is_late = first_us + second_us > left_us;
    auto self = shared_from_this();
    world.after_us(owner, std::min(first_us, left_us), [self, pages, is_late, second_us]() mutable {
      const bool is_there = self->copy(pages, false);
      const Code code = is_late ? Code::kTimeout : Code::kUnavailable;
      if (is_late || !is_there) return self->tell(pages, code);
      self->world.after_us(self->owner, second_us, [self, pages] {
        const bool is_still_there = self->copy(pages, true);
        self->tell(pages, is_still_there ? Code::kOk : Code::kUnavailable);
      });
    });
  }

  /// One half of the bytes; false: nobody is there to be read from.
  bool copy(const std::vector<PeerReader::Page>& pages, bool is_second) {
    const Neighbour* there = find(port);
    const bool is_there = there != nullptr && there->incarnation == incarnation &&
                          !world.are_parted(owner, *there->host) &&
                          !world.chance(world.faults().failed_read);
    if (!is_there) return false;
    for (const PeerReader::Page& page : pages) {
      std::vector<uint8_t> bytes = gather(there->pool, page.remote);
      if (is_second && world.chance(world.faults().flipped_read)) {
        world.note(&owner, "a bit flips on its way");
        bytes[world.random().between(bytes.size() / 2, bytes.size() - 1)] ^= 1;
      }
      const size_t half = bytes.size() / 2;
      is_second ? scatter(pool, page.local, bytes, half, bytes.size())
                : scatter(pool, page.local, bytes, 0, half);
    }
    return true;
  }

  void tell(const std::vector<PeerReader::Page>& pages, Code code) {
    --in_flight;
    std::vector<PeerReader::Outcome> outcomes;
    for (const PeerReader::Page& page : pages) {
      outcomes.push_back({page.tag, outcome_of(pool, page, code)});
    }
    done(std::move(outcomes));
  }
};

class SimReader : public PeerReader {
 public:
  explicit SimReader(std::shared_ptr<ReaderState> state) : state_(std::move(state)) {}
  void read(std::vector<Page> pages, Priority, uint64_t deadline_ns) override {
    state_->read(std::move(pages), deadline_ns);
  }
  void stop_soon() override { state_->is_stopped = true; }
  bool has_ended() const override { return state_->is_stopped && state_->in_flight == 0; }

 private:
  std::shared_ptr<ReaderState> state_;
};

}  // namespace

Result<std::unique_ptr<PeerLine>> SimRoads::link_to(const HostPort& address, uint64_t incarnation) {
  auto state =
      std::make_shared<LinkState>(world_, owner_, own_name_, address.port, incarnation, find_);
  return std::unique_ptr<PeerLine>(std::make_unique<SimLink>(std::move(state)));
}

std::unique_ptr<PeerReader> SimRoads::reader_of(const PeerHelloReply& peer, PeerReader::Done done) {
  const Result<HostPort> address = parse_host_port(peer.engine_address);
  return std::make_unique<SimReader>(std::make_shared<ReaderState>(
      world_, owner_, pool_, address.value().port, peer.incarnation, find_, std::move(done)));
}

}  // namespace hicache::testing
