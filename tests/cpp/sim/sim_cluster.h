// A cluster in a simulated world: what befalls it, and what must hold.
//
//   trouble   clients at work, faults of the kinds that this world knows
//   healing   no more faults; whoever is down comes back
//   calm      the directory knows exactly what the nodes have; what is promised is delivered; what
//             was replaced is never seen again; what was removed is nowhere
//   the end   no lease, no byte, no page is left anywhere
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sim/sim_master.h"
#include "sim/sim_node.h"

namespace hicache::testing {

class SimCluster {
 public:
  SimCluster(uint64_t number, bool traces);

  /// All of it. What is wrong, with what happened before if it was traced; or "".
  std::string live();
  /// Of what happened.
  uint64_t events_hash() const { return world_.events_hash(); }
  uint64_t delivered_count() const { return delivered_; }

 private:
  struct Machine {
    Host* host;
    std::string name;
    std::unique_ptr<SimNode> node;  // Null: down.
  };
  /// Of each kind of fault: on average that often, in ms; 0: never.
  struct Rates {
    uint64_t cut = 0;
    uint64_t partition = 0;
    uint64_t crash = 0;
    uint64_t leave = 0;
    uint64_t master = 0;
    uint64_t pause = 0;
    uint64_t flip = 0;
    uint64_t clear = 0;
    uint64_t drain = 0;
  };

  void choose_faults();
  void start_node(Machine& machine);
  void stop_node(Machine& machine);
  bool is_alive(const Host& from, const std::string& address, uint64_t incarnation) const;
  // Trouble
  void begin_trouble();
  void often(uint64_t mean_ms, void (SimCluster::*act)());
  void act_as_client();
  void part_some();
  void crash_some();
  void crash(Machine& machine);
  void leave_some();
  void trouble_master();
  void pause_some();
  void flip_some();
  void clear_some();
  void drain_some();
  uint64_t next_epoch();
  void fix_leaders();
  Machine* some_node();
  Machine& any_machine() { return machines_[world_.random().below(machines_.size())]; }
  /// The node on a machine, its clock shown.
  SimNode& on(Machine& machine) {
    world_.show_clock(*machine.host);
    return *machine.node;
  }
  // Healing and calm
  void heal();
  bool is_settled();
  void settle(const char* when, uint64_t patience_ms);
  void check_directory(const char* when);
  void check_promises();
  void check_replacements();
  void remove_for_certain(Machine& machine, uint64_t space, uint64_t key);
  void remove_all();
  /// One of them; "": nobody has the page.
  std::string who_has(uint64_t space, uint64_t key) const;
  void check_end();
  std::string differences();
  SimMaster* leader();
  void let_clients_finish(const char* when);

  World world_;
  PageOracle oracle_;
  Rates rates_;
  bool is_elected_;
  bool is_troubled_ = false;
  uint64_t last_epoch_ = 0;
  uint64_t last_incarnation_ = 1000;
  std::vector<std::unique_ptr<SimMaster>> masters_;
  std::vector<Machine> machines_;
  uint64_t pool_size_bytes_ = 0;
  uint64_t delivered_ = 0;
};

}  // namespace hicache::testing
