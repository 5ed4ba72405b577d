#include "sim/sim_cluster.h"

#include <algorithm>
#include <set>

namespace hicache::testing {
namespace {

constexpr uint64_t kMs = 1000;  // Of the world's microseconds.
constexpr uint16_t kFirstPort = 1000;
constexpr uint64_t kSettleMs = 120'000;

Directory::Options directory_options(bool is_elected) {
  return {.nodes_max = 8,
          .pages_max = 100'000,
          .holdings_max = 1000,
          .heartbeat_interval_ms = 250,
          .silence_max_ms = 900,
          .probe_interval_ms = 500,
          .probe_timeout_ms = 300,
          .is_elected = is_elected};
}

}  // namespace

SimCluster::SimCluster(uint64_t number, bool traces) : world_(number, traces) {
  Random& random = world_.random();
  is_elected_ = random.one_in(2);
  choose_faults();
  for (int i = 0; i < (is_elected_ ? 2 : 1); ++i) {
    masters_.push_back(std::make_unique<SimMaster>(
        world_, "master " + std::to_string(i), directory_options(is_elected_),
        [this](const Host& from, const std::string& address, uint64_t life) {
          return is_alive(from, address, life);
        }));
  }
  pool_size_bytes_ = random.between(12, 64) * 64 * kKiB;
  const uint64_t count = random.between(2, 4);
  for (uint64_t i = 0; i < count; ++i) {
    const std::string name = "node " + std::to_string(i);
    machines_.push_back({&world_.add_host(name), name, nullptr});
  }
  masters_[0]->start(next_epoch());
  if (masters_.size() > 1) masters_[1]->start(0);
  for (Machine& machine : machines_) start_node(machine);
}

void SimCluster::choose_faults() {
  Random& random = world_.random();
  const auto perhaps = [&](uint64_t least, uint64_t most) {
    return random.one_in(2) ? random.between(least, most) : 0;
  };
  rates_ = {.cut = perhaps(200, 5000),
            .partition = perhaps(500, 5000),
            .crash = perhaps(1000, 8000),
            .leave = perhaps(2000, 10'000),
            .master = perhaps(1000, 8000),
            .pause = perhaps(500, 5000),
            .flip = random.one_in(4) ? random.between(100, 3000) : 0,
            .clear = perhaps(1000, 8000),
            .drain = perhaps(1000, 8000)};
  world_.faults() = {.slow_message = perhaps(20, 2000),
                     .lost_batch = perhaps(5, 100),
                     .repeated_batch = perhaps(5, 100),
                     .flipped_read = perhaps(10, 100),
                     .failed_read = perhaps(5, 100),
                     .slow_read = perhaps(5, 100),
                     .short_life = perhaps(5, 50),
                     .dead_client = perhaps(10, 200)};
}

void SimCluster::start_node(Machine& machine) {
  world_.start_host(*machine.host);
  const auto number = static_cast<uint16_t>(&machine - machines_.data());
  // Later lives have larger ones, but for machines whose clock was set back.
  last_incarnation_ += 100;
  const bool is_set_back = is_troubled_ && world_.random().one_in(8);
  const uint64_t incarnation = last_incarnation_ - (is_set_back ? 950 + number : 0);
  world_.note(machine.host, "starts as " + std::to_string(incarnation));
  std::vector<Host*> masters;
  for (const auto& master : masters_) masters.push_back(&master->host());
  machine.node = std::make_unique<SimNode>(
      world_, oracle_,
      SimNode::Options{.host = machine.host,
                       .name = machine.name,
                       .incarnation = incarnation,
                       .port = static_cast<uint16_t>(kFirstPort + number),
                       .pool_size_bytes = pool_size_bytes_,
                       .masters = masters,
                       .find = [this](uint16_t port) -> const Neighbour* {
                         const size_t at = port - kFirstPort;
                         const bool is_there = at < machines_.size() && machines_[at].node;
                         return is_there ? &machines_[at].node->as_neighbour() : nullptr;
                       }});
}

void SimCluster::stop_node(Machine& machine) {
  world_.note(machine.host, "ends");
  delivered_ += machine.node->delivered_count();
  world_.stop_host(*machine.host);
  machine.node.reset();
}

bool SimCluster::is_alive(const Host& from, const std::string& address,
                          uint64_t incarnation) const {
  const Result<HostPort> parsed = parse_host_port(address);
  const size_t at = parsed.ok() ? parsed.value().port - kFirstPort : machines_.size();
  if (at >= machines_.size() || !machines_[at].node) return false;
  return machines_[at].node->as_neighbour().incarnation == incarnation &&
         !world_.are_parted(from, *machines_[at].host) &&
         machines_[at].host->paused_until_us <= world_.now_us();
}

/// A single master takes its epoch from a clock, which may have been set back, though not
/// to the very microsecond of an earlier start.
uint64_t SimCluster::next_epoch() {
  if (is_elected_) return ++last_epoch_;
  last_epoch_ += 1'000'000;
  const bool is_set_back = last_epoch_ > 3'000'000 && world_.random().one_in(3);
  return is_set_back ? world_.random().between(1'000'001, last_epoch_ - 1'000'001) : last_epoch_;
}

SimMaster* SimCluster::leader() {
  SimMaster* leader = nullptr;
  for (const auto& master : masters_) {
    const bool leads = master->host().is_up && master->is_leading();
    if (!leads) continue;
    const bool is_newer =
        leader == nullptr || master->directory().epoch() > leader->directory().epoch();
    if (is_newer) leader = master.get();
  }
  return leader;
}

std::string SimCluster::live() {
  begin_trouble();
  const uint64_t trouble_ms = world_.random().between(3000, 15'000);
  (void)world_.run(trouble_ms * kMs, [] { return false; });
  if (!world_.has_failed()) heal();
  if (!world_.has_failed()) settle("after the trouble", kSettleMs);
  if (!world_.has_failed()) check_directory("after the trouble");
  if (!world_.has_failed()) check_promises();
  if (!world_.has_failed()) check_replacements();
  if (!world_.has_failed()) remove_all();
  if (!world_.has_failed()) check_end();
  for (Machine& machine : machines_) {
    if (machine.node) delivered_ += machine.node->delivered_count();
  }
  return world_.has_failed() ? world_.report() : "";
}

// ---------------------------------------------------------------- healing and calm

void SimCluster::heal() {
  is_troubled_ = false;
  world_.note(nullptr, "heals");
  world_.faults() = {};
  world_.join_all();
  fix_leaders();
  for (Machine& machine : machines_) {
    machine.host->paused_until_us = 0;
    if (!machine.node) start_node(machine);
  }
  for (const auto& master : masters_) master->host().paused_until_us = 0;
}

bool SimCluster::is_settled() {
  if (leader() == nullptr) return false;
  for (const Machine& machine : machines_) {
    if (!machine.node || !machine.node->why_not_quiet().empty()) return false;
  }
  return differences().empty();
}

/// How the directory differs from what the nodes have.
std::string SimCluster::differences() {
  SimMaster* master = leader();
  if (master == nullptr) return "nobody leads";
  Directory& directory = master->directory();
  std::map<NodeIndex, std::string> names;
  size_t member_count = 0;
  for (const MemberView& view : directory.apply(MembersRequest{}).members) {
    if (view.state == NodeState::kGone) continue;
    names[view.index] = view.member.name;
    const bool is_well = view.state == NodeState::kLive || view.state == NodeState::kDraining;
    if (!is_well) return view.member.name + " is not live";
    ++member_count;
  }
  if (member_count != machines_.size()) return std::to_string(member_count) + " members";
  for (uint64_t space = 0; space < PageOracle::kSpaces; ++space) {
    LocateReply reply;
    directory.apply(
        LocateRequest{0, space_digest(space), false, kReplicasMax, keys_of(0, PageOracle::kKeys)},
        reply);
    size_t at = 0;
    for (uint64_t key = 0; key < PageOracle::kKeys; ++key) {
      std::set<std::string> told;
      for (size_t n = 0; n < reply.counts[key]; ++n) told.insert(names[reply.replicas[at++].node]);
      for (const Machine& machine : machines_) {
        const bool has = machine.node->has(space, key);
        if (has == told.contains(machine.name)) continue;
        return "of " + std::to_string(space) + "/" + std::to_string(key) + " the directory says " +
               (has ? "nothing, which " : "too much: not ") + machine.name + " has";
      }
    }
  }
  return "";
}

void SimCluster::settle(const char* when, uint64_t patience_ms) {
  const bool is_calm = world_.run(patience_ms * kMs, [this] { return is_settled(); });
  if (is_calm || world_.has_failed()) return;
  std::string why = differences();
  for (const Machine& machine : machines_) {
    const std::string busy = machine.node->why_not_quiet();
    if (!busy.empty()) why += "; " + machine.name + ": " + busy;
  }
  world_.fail(std::string("nothing converges ") + when + ": " + why);
}

/// It stays as it is.
void SimCluster::check_directory(const char* when) {
  (void)world_.run(3000 * kMs, [] { return false; });
  settle(when, 5000);
  for (const Machine& machine : machines_) {
    const std::string fault = machine.node->check_invariants();
    if (!fault.empty()) world_.fail(machine.name + ": " + fault);
  }
}

void SimCluster::let_clients_finish(const char* when) {
  const auto are_idle = [this] {
    for (const Machine& machine : machines_) {
      for (size_t client = 0; client < SimNode::kClients; ++client) {
        if (machine.node->is_busy(client)) return false;
      }
    }
    return true;
  };
  if (!world_.run(20'000 * kMs, are_idle)) world_.fail(std::string("a client waits ") + when);
}

/// What a look-up says is there can be had while its leases last, though others put meanwhile.
void SimCluster::check_promises() {
  // Damaged pages that nobody read are found now.
  for (uint64_t key = 0; key < PageOracle::kKeys; ++key) {
    for (uint64_t space = 0; space < PageOracle::kSpaces; ++space) {
      for (Machine& machine : machines_) {
        if (machine.node->has(space, key)) on(machine).get(0, space, {key}, Must::kNothing);
      }
      let_clients_finish("for what its own node has");
    }
  }
  settle("after all was read", kSettleMs);
  for (int round = 0; round < 12 && !world_.has_failed(); ++round) {
    Machine& asking = any_machine();
    Machine& putting = any_machine();
    const uint64_t space = world_.random().below(PageOracle::kSpaces);
    const uint64_t first = world_.random().below(PageOracle::kKeys - 4);
    on(asking).look_up(0, space, {first, first + 1, first + 2, first + 3}, Must::kDeliver);
    on(putting).put(1, space, world_.random().below(PageOracle::kKeys), false);
    let_clients_finish("for what it was promised");
  }
  settle("after promises", kSettleMs);
}

/// Once a replacement is done, nobody anywhere reads what was there before.
void SimCluster::check_replacements() {
  // What look-ups were promised before ends by its time.
  (void)world_.run(2 * SimNode::kLookupTtlMs * kMs, [] { return false; });
  for (int round = 0; round < 6 && !world_.has_failed(); ++round) {
    const uint64_t space = world_.random().below(PageOracle::kSpaces);
    const uint64_t key = world_.random().below(PageOracle::kKeys);
    Machine& replacing = any_machine();
    on(replacing).put(0, space, key, true);
    let_clients_finish("for a replacement");
    if (!replacing.node->has(space, key)) continue;  // There was no room.
    settle("after a replacement", kSettleMs);
    for (Machine& machine : machines_) on(machine).get(1, space, {key}, Must::kDeliverNewest);
    let_clients_finish("for what was replaced");
    settle("after reading what was replaced", kSettleMs);
    for (const Machine& machine : machines_) {
      // Long before they end by their time; copies that nobody asked for may be under way.
      const auto is_told = [&] { return machine.node->lease_count() == 0; };
      if (world_.run(SimNode::kReadTtlMs / 2 * kMs, is_told)) continue;
      world_.fail(machine.name + " was not told that its pages are not read any more");
    }
  }
}

std::string SimCluster::who_has(uint64_t space, uint64_t key) const {
  for (const Machine& machine : machines_) {
    if (machine.node->has(space, key)) return machine.name;
  }
  return "";
}

/// All nodes are there: none may leave it in doubt.
void SimCluster::remove_for_certain(Machine& machine, uint64_t space, uint64_t key) {
  const uint64_t before = on(machine).doubtful_count();
  on(machine).remove(0, space, key);
  let_clients_finish("for a removal");
  if (world_.has_failed() || machine.node->doubtful_count() == before) return;
  world_.fail(machine.name + " does not know whether all have removed " + std::to_string(space) +
              "/" + std::to_string(key));
}

/// Also while the one who removes is fetching the page.
void SimCluster::remove_all() {
  Random& random = world_.random();
  for (uint64_t space = 0; space < PageOracle::kSpaces; ++space) {
    for (uint64_t key = 0; key < PageOracle::kKeys; ++key) {
      Machine& removing = any_machine();
      if (random.one_in(3)) {
        on(removing).get(1, space, {key}, Must::kNothing);
        (void)world_.run(random.size_up_to(8000), [] { return false; });
      }
      remove_for_certain(removing, space, key);
    }
  }
  settle("after all was removed", kSettleMs);
  // A copy that was just being made, or that the directory had not heard of, may stay: once.
  for (uint64_t space = 0; space < PageOracle::kSpaces; ++space) {
    for (uint64_t key = 0; key < PageOracle::kKeys && !world_.has_failed(); ++key) {
      if (who_has(space, key).empty()) continue;
      remove_for_certain(any_machine(), space, key);
      const std::string keeper = who_has(space, key);
      if (keeper.empty()) continue;
      world_.fail(keeper + " still has " + std::to_string(space) + "/" + std::to_string(key) +
                  ", which was removed twice");
    }
  }
  settle("after all was removed again", kSettleMs);
}

void SimCluster::check_end() {
  constexpr uint64_t kLeasesMs =
      2 * (SimNode::kReadTtlMs + SimNode::kLookupTtlMs + SimNode::kReservationTtlMs);
  (void)world_.run(kLeasesMs * kMs, [] { return false; });
  for (const Machine& machine : machines_) {
    std::string fault = machine.node->leaks();
    if (fault.empty()) fault = machine.node->check_invariants();
    if (!fault.empty()) world_.fail(machine.name + " keeps for ever: " + fault);
  }
  Directory& directory = leader()->directory();
  (void)directory.check_invariants();
  for (const auto& [name, value] : directory.stats()) {
    const bool must_be_none = name == "pages" || name == "holdings" || name == "nodes_suspect";
    if (must_be_none && value != 0) {
      world_.fail("the directory keeps for ever: " + std::to_string(value) + " " + name);
    }
  }
}

}  // namespace hicache::testing
