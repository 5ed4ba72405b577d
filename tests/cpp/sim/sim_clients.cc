// What the clients of a simulated node do.
#include <algorithm>
#include <utility>

#include "sim/sim_node.h"
#include "transfer/checksum_copy.h"

namespace hicache::testing {
namespace {

constexpr uint64_t kPatienceMs = 3000;

}  // namespace

void SimNode::later(size_t client, uint64_t delay_us, std::function<void()> task) {
  const uint64_t life = clients_[client].life;
  world_.after_us(host_, delay_us, [this, client, life, task = std::move(task)] {
    if (clients_[client].life == life) task();
    wake();
  });
}

void SimNode::wait_for(size_t client, RemoteWaitId wait, std::function<void()> then) {
  const uint64_t life = clients_[client].life;
  waiters_.push_back({wait, [this, client, life, then = std::move(then)] {
                        if (clients_[client].life == life) then();
                      }});
  wake();
}

void SimNode::lose_client(size_t client) {
  world_.note(&host_, "loses a client");
  Client& lost = clients_[client];
  store_.close_session(lost.session, monotonic_ms());
  remote_.close_session(lost.session);
  ++lost.life;
  lost.is_busy = false;
  lost.session = store_.open_session();
}

// ---------------------------------------------------------------- put

void SimNode::put(size_t client, uint64_t space, uint64_t key, bool replaces) {
  clients_[client].is_busy = true;
  Writing writing{.bytes = oracle_.put(space, key, replaces),
                  .until_ms = monotonic_ms() + kReservationTtlMs,
                  .replaces = replaces};
  const uint64_t size = writing.bytes.size();
  const Key name = key_of(key);
  std::vector<PageStore::Placement> placements;
  store_.reserve(clients_[client].session, spaces_[space], {&name, 1}, {&size, 1},
                 {.parent = nullptr, .chained = true, .replace = replaces, .pin = Pin::kNone},
                 monotonic_ms(), placements);
  if (placements[0].code != Code::kOk) return finish(client);
  writing.ref = placements[0].ref;
  writing.extents.assign(placements[0].extents.begin(), placements[0].extents.end());
  const uint64_t pause_us = world_.random().size_up_to(20'000);
  later(client, pause_us, [this, client, space, key, pause_us, writing = std::move(writing)] {
    // A client knows how long its place is its own.
    if (monotonic_ms() >= writing.until_ms) return finish(client);
    scatter(pool_.data(), writing.extents, writing.bytes, 0, writing.bytes.size() / 2);
    if (world_.chance(world_.faults().dead_client)) return lose_client(client);
    later(client, pause_us, [this, client, space, key, writing] {
      if (monotonic_ms() >= writing.until_ms) return finish(client);
      const size_t size = writing.bytes.size();
      scatter(pool_.data(), writing.extents, writing.bytes, size / 2, size);
      commit(client, space, key, writing);
    });
  });
}

void SimNode::commit(size_t client, uint64_t space, uint64_t key, const Writing& writing) {
  const uint64_t checksum = page_checksum(writing.bytes.data(), writing.bytes.size());
  const uint64_t ttl_ms =
      world_.chance(world_.faults().short_life) ? world_.random().between(1, 3000) : 0;
  const auto replica_count =
      static_cast<uint8_t>(world_.random().one_in(4) ? world_.random().between(2, 3) : 1);
  const Code code =
      store_.commit(clients_[client].session, writing.ref, checksum,
                    {.ttl_ms = ttl_ms, .replace = writing.replaces, .replica_count = replica_count},
                    monotonic_ms());
  if (code == Code::kOk && replica_count > 1) replicator_.want(writing.ref);
  world_.note(&host_, std::string(writing.replaces ? "replaces " : "puts ") + named(space, key) +
                          ": " + std::string(code_name(code)));
  if (code != Code::kOk || !writing.replaces) return finish(client);
  ask_to_remove(client, space, key, false);
}

// ---------------------------------------------------------------- remove, clear

void SimNode::remove(size_t client, uint64_t space, uint64_t key) {
  clients_[client].is_busy = true;
  uint64_t ticket = 0;
  const Code code = pages_.remove(spaces_[space], key_of(key), ticket);
  world_.note(&host_, "removes " + named(space, key) + ": " + std::string(code_name(code)));
  ask_to_remove(client, space, key, true);
}

void SimNode::ask_to_remove(size_t client, uint64_t space, uint64_t key, bool removes) {
  RemoteTier::Question question{.session = clients_[client].session,
                                .space = store_.space_of(spaces_[space]),
                                .is_prefix = false,
                                .leases = false,
                                .keys = {key_of(key)},
                                .parents = {0}};
  const RemoteWaitId wait = remote_.begin_remove(std::move(question), kPatienceMs, monotonic_ms());
  wait_for(client, wait, [this, client, space, key, removes, wait] {
    const RemoteTier::Answer answer = remote_.finish(wait);
    if (std::ranges::count(answer.in_doubt, 0) == 0) {
      ++doubtful_count_;
      world_.note(&host_, "is in doubt whether " + named(space, key) + " is gone elsewhere");
    }
    uint64_t ticket = 0;
    if (removes) (void)pages_.remove(spaces_[space], key_of(key), ticket);
    finish(client);
  });
}

void SimNode::clear(uint64_t space) {
  world_.note(&host_, "clears " + std::to_string(space));
  uint64_t ticket = 0;
  (void)pages_.clear(spaces_[space], ticket);
  const auto [node, incarnation] = membership_.seat();
  bulk_.ask<ClearSpaceReply>(ClearSpaceRequest{0, space_digest(space), node, incarnation},
                             Deadline::after_ms(kPatienceMs),
                             [](const Result<ClearSpaceReply>&) {});
  wake();
}

// ---------------------------------------------------------------- look up, get

void SimNode::look_up(size_t client, uint64_t space, std::vector<uint64_t> keys, Must must) {
  clients_[client].is_busy = true;
  std::vector<Key> names;
  for (const uint64_t key : keys) names.push_back(key_of(key));
  const uint8_t flags = kLookupLease | kLookupPrefix;
  std::vector<uint32_t> missing;
  RemoteTier::Question question = pages_.question_of(clients_[client].session, spaces_[space],
                                                     names, flags, monotonic_ms(), missing);
  const bool asks = !missing.empty();
  const RemoteWaitId wait = asks ? remote_.begin_lookup(std::move(question), monotonic_ms()) : 0;
  wait_for(client, wait, [this, client, space, keys, must, names, missing, wait] {
    const RemoteTier::Answer answer = remote_.finish(wait);
    std::vector<Code> codes;
    pages_.lookup(clients_[client].session, spaces_[space], names, kLookupLease | kLookupPrefix,
                  missing, answer.found, monotonic_ms(), codes);
    const size_t count =
        static_cast<size_t>(std::find(codes.begin(), codes.end(), Code::kNotFound) - codes.begin());
    world_.note(&host_,
                "is promised " + std::to_string(count) + " pages from " + named(space, keys[0]));
    if (count == 0) return finish(client);
    std::vector<uint64_t> promised(keys.begin(), keys.begin() + static_cast<ptrdiff_t>(count));
    later(client, world_.random().size_up_to(kLookupTtlMs * 500),
          [this, client, space, promised, must] { get(client, space, promised, must); });
  });
}

void SimNode::get(size_t client, uint64_t space, std::vector<uint64_t> keys, Must must) {
  clients_[client].is_busy = true;
  world_.note(&host_, "gets from " + named(space, keys[0]));
  std::vector<Key> names;
  for (const uint64_t key : keys) names.push_back(key_of(key));
  const uint64_t now_ms = monotonic_ms();
  std::vector<uint32_t> missing;
  RemoteTier::Question question =
      pages_.question_of(clients_[client].session, spaces_[space], names, 0, now_ms, missing);
  if (missing.empty()) return lease(client, space, keys, must, {});
  const RemoteWaitId wait = remote_.begin_get(std::move(question), kPatienceMs, now_ms);
  remote_.hold(wait, store_.hold_present(clients_[client].session, spaces_[space], names, now_ms));
  wait_for(client, wait, [this, client, space, keys, must, wait] {
    lease(client, space, keys, must, remote_.finish(wait).held);
  });
}

/// What the tier has counted, for people.
std::string SimNode::why_missing() const {
  NodeStats stats = store_.stats();
  remote_.add_stats(stats);
  std::string why;
  const auto* values = reinterpret_cast<const uint64_t*>(&stats);
  for (size_t i = 0; i < kNodeStatCount; ++i) {
    const std::string_view name = kNodeStatNames[i];
    const bool is_told = values[i] != 0 && (name.starts_with("remote") || name.starts_with("pool"));
    if (is_told) why += std::string(name) + " " + std::to_string(values[i]) + " ";
  }
  return why;
}

void SimNode::lease(size_t client, uint64_t space, const std::vector<uint64_t>& keys, Must must,
                    std::vector<PageRef> held) {
  std::vector<Key> names;
  for (const uint64_t key : keys) names.push_back(key_of(key));
  const uint64_t now_ms = monotonic_ms();
  std::vector<PageStore::Location> locations;
  const SessionIndex session = clients_[client].session;
  store_.lease(session, spaces_[space], names, false, now_ms, locations);
  std::vector<Reading> readings;
  for (size_t i = 0; i < keys.size(); ++i) {
    const PageStore::Location& location = locations[i];
    if (location.code != Code::kOk) {
      if (must != Must::kNothing)
        world_.fail(name() + " cannot have " + named(space, keys[i]) + " (" + why_missing() + ")");
      continue;
    }
    readings.push_back({.space = space,
                        .key = keys[i],
                        .ref = location.ref,
                        .checksum = location.checksum,
                        .extents = {location.extents.begin(), location.extents.end()},
                        .leased_ms = now_ms});
  }
  pages_.release(session, held, now_ms);
  auto left = std::make_shared<size_t>(readings.size());
  if (readings.empty()) return finish(client);
  for (Reading& reading : readings) {
    read(client, std::move(reading), must, [this, client, left] {
      if (--*left == 0) finish(client);
    });
  }
}

/// In two steps: a page that changes meanwhile shows.
void SimNode::read(size_t client, Reading reading, Must must, const std::function<void()>& done) {
  const bool is_slow = world_.chance(world_.faults().slow_read);
  const uint64_t pause_us = world_.random().size_up_to(is_slow ? 3'000'000 : 5000);
  later(client, pause_us, [this, client, reading, must, done, pause_us] {
    Reading half = reading;
    half.bytes = gather(pool_.data(), half.extents);
    if (world_.chance(world_.faults().dead_client)) return lose_client(client);
    later(client, pause_us, [this, client, half, must, done] {
      Reading whole = half;
      const std::vector<uint8_t> rest = gather(pool_.data(), whole.extents);
      const auto middle = static_cast<ptrdiff_t>(rest.size() / 2);
      std::copy(rest.begin() + middle, rest.end(), whole.bytes.begin() + middle);
      judge(client, whole, must);
      done();
    });
  });
}

void SimNode::judge(size_t client, Reading& reading, Must must) {
  const std::string what = name() + " reads " + named(reading.space, reading.key);
  const bool is_verified =
      page_checksum(reading.bytes.data(), reading.bytes.size()) == reading.checksum;
  const bool is_leased = monotonic_ms() < reading.leased_ms + kReadTtlMs;
  if (is_verified) {
    ++delivered_;
    if (!oracle_.is_right(reading.space, reading.key, reading.bytes)) {
      world_.fail(what + ": wrong bytes");
    } else if (must == Must::kDeliverNewest &&
               !oracle_.is_newest(reading.space, reading.key, reading.bytes)) {
      world_.fail(what + ": old bytes");
    }
  } else if (is_leased && !has_flips_) {
    world_.fail(what + ": its bytes changed under the lease");
  } else {
    if (must != Must::kNothing) world_.fail(what + ": damaged");
    pages_.report_corrupt({&reading.ref, 1});
  }
  pages_.release(clients_[client].session, {&reading.ref, 1}, monotonic_ms());
}

}  // namespace hicache::testing
