// What befalls a simulated cluster.
#include <algorithm>

#include "sim/sim_cluster.h"

namespace hicache::testing {
namespace {

constexpr uint64_t kMs = 1000;

}  // namespace

void SimCluster::begin_trouble() {
  is_troubled_ = true;
  often(world_.random().between(5, 60), &SimCluster::act_as_client);
  often(rates_.partition, &SimCluster::part_some);
  often(rates_.crash, &SimCluster::crash_some);
  often(rates_.leave, &SimCluster::leave_some);
  often(rates_.master, &SimCluster::trouble_master);
  often(rates_.pause, &SimCluster::pause_some);
  often(rates_.flip, &SimCluster::flip_some);
  often(rates_.clear, &SimCluster::clear_some);
  often(rates_.drain, &SimCluster::drain_some);
  often(rates_.cut, nullptr);
}

/// Again and again; without an act, a stream breaks.
void SimCluster::often(uint64_t mean_ms, void (SimCluster::*act)()) {
  if (mean_ms == 0) return;
  world_.after_us(world_.random().between(1, 2 * mean_ms * kMs), [this, mean_ms, act] {
    if (!is_troubled_) return;
    act == nullptr ? world_.cut_some_stream() : (this->*act)();
    often(mean_ms, act);
  });
}

SimCluster::Machine* SimCluster::some_node() {
  Machine& machine = any_machine();
  const bool can_act = machine.node && machine.host->paused_until_us <= world_.now_us();
  return can_act ? &machine : nullptr;
}

void SimCluster::act_as_client() {
  Machine* machine = some_node();
  if (machine == nullptr) return;
  Random& random = world_.random();
  const size_t client = random.below(SimNode::kClients);
  const uint64_t space = random.below(PageOracle::kSpaces);
  const uint64_t first = random.below(PageOracle::kKeys - 8);
  // As one of the machine's own events: its clock is to be shown.
  world_.after_us(*machine->host, 0, [this, machine, client, space, first] {
    SimNode& node = *machine->node;
    if (node.is_busy(client)) return;
    Random& dice = world_.random();
    std::vector<uint64_t> keys;
    for (uint64_t i = 0, count = dice.between(1, 8); i < count; ++i) keys.push_back(first + i);
    const uint64_t throw_of = dice.below(100);
    if (throw_of < 35) return node.put(client, space, first, false);
    if (throw_of < 42) return node.put(client, space, first, true);
    if (throw_of < 48) return node.remove(client, space, first);
    if (throw_of < 70) return node.look_up(client, space, keys, Must::kNothing);
    node.get(client, space, keys, Must::kNothing);
  });
}

void SimCluster::part_some() {
  std::vector<Host*> hosts;
  for (const auto& master : masters_) hosts.push_back(&master->host());
  for (const Machine& machine : machines_) hosts.push_back(machine.host);
  Host* a = world_.random().pick(hosts);
  for (Host* b : hosts) {
    if (a == b || world_.random().one_in(3)) continue;
    world_.note(a, "is parted from " + b->name);
    world_.part(*a, *b);
    world_.after_us(world_.random().size_up_to(5'000'000), [this, a, b] { world_.join(*a, *b); });
  }
}

void SimCluster::crash_some() {
  Machine* machine = some_node();
  if (machine != nullptr) crash(*machine);
}

void SimCluster::crash(Machine& machine) {
  stop_node(machine);
  world_.after_us(world_.random().size_up_to(3'000'000), [this, &machine] {
    if (!machine.node) start_node(machine);
  });
}

void SimCluster::leave_some() {
  Machine* machine = some_node();
  if (machine == nullptr) return;
  world_.after_us(*machine->host, 0, [machine] { machine->node->leave(); });
  world_.after_us(world_.random().size_up_to(20'000), [this, machine] {
    if (is_troubled_ && machine->node) crash(*machine);
  });
}

/// It begins anew and knows nothing; or another one takes over, which the old one hears later.
void SimCluster::trouble_master() {
  SimMaster* master = leader();
  if (master == nullptr) return;
  if (masters_.size() == 1 || world_.random().one_in(2)) {
    master->stop();
    world_.after_us(world_.random().size_up_to(2'000'000), [this, master] {
      if (!master->host().is_up) master->start(next_epoch());
    });
    return;
  }
  for (const auto& other : masters_) {
    if (other.get() == master) continue;
    const uint64_t epoch = next_epoch();
    if (other->host().is_up) {
      other->lead(epoch);
    } else {
      other->start(epoch);
    }
    world_.after_us(world_.random().size_up_to(3'000'000), [this] { fix_leaders(); });
    return;
  }
}

/// As an election does: who is not the newest leads no longer; somebody leads.
void SimCluster::fix_leaders() {
  for (const auto& master : masters_) {
    if (!master->host().is_up) master->start(is_elected_ ? 0 : next_epoch());
  }
  SimMaster* newest = leader();
  for (const auto& master : masters_) {
    if (newest != nullptr && master.get() != newest && master->is_leading()) master->lead(0);
  }
  if (newest == nullptr || newest->is_outdated()) masters_[0]->lead(next_epoch());
}

void SimCluster::pause_some() {
  Machine* machine = some_node();
  Host& host = machine == nullptr ? masters_[0]->host() : *machine->host;
  const uint64_t pause_us = world_.random().size_up_to(2'500'000);
  world_.note(&host, "stands still for " + std::to_string(pause_us / kMs) + " ms");
  host.paused_until_us = world_.now_us() + pause_us;
}

void SimCluster::flip_some() {
  if (Machine* machine = some_node()) machine->node->flip_a_bit();
}

void SimCluster::clear_some() {
  Machine* machine = some_node();
  if (machine == nullptr) return;
  const uint64_t space = world_.random().below(PageOracle::kSpaces);
  world_.after_us(*machine->host, 0, [machine, space] { machine->node->clear(space); });
}

void SimCluster::drain_some() {
  SimMaster* master = leader();
  if (master == nullptr) return;
  const bool is_on = world_.random().one_in(2);
  const std::string name = any_machine().name;
  world_.note(&master->host(), (is_on ? "drains " : "ends draining ") + name);
  world_.after_us(master->host(), 0, [master, is_on, name] {
    (void)master->directory().apply(DrainRequest{0, is_on, name});
    master->advance();
  });
}

}  // namespace hicache::testing
