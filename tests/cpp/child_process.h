// Roles that tests run in processes of their own, to be killed: this program, started once more.
#pragma once

#include <csignal>
#include <string>
#include <vector>

namespace hicache::testing {

/// What `--role=NAME ARGUMENTS` does; called by main().
///   node PATH POOL_SIZE       a node; says "ready" and waits to be killed
///   ssd_node PATH FOLDER HOW  one with that SSD directory, HOW: written "through" or "back"
///   reserve PATH COUNT SIZE   a client that reserves pages, writes half of them, and waits
///   lease PATH COUNT          a client that leases pages for reading, and waits
///   tcp_peer FILE             an end of the TCP transport that shares the file's memory
///   cluster_node PORT NAME COUNT SIZE   see cluster_rig.h
///   engine TRANSPORT PORT HOW FILE   a transfer engine, see engine_peer.h
///   rdma_engine DEVICES FILE, rdma_control PORT   see rdma_peer.h
///   transport RIG FILE        the target of a transport, see transport_contract.h
int run_role(const std::string& role, const std::vector<std::string>& arguments);

class ChildProcess {
 public:
  /// Starts it and waits until it says that it is ready.
  ChildProcess(const std::string& role, const std::vector<std::string>& arguments);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  bool is_ready() const { return is_ready_; }
  void signal(int number);
  /// SIGKILL, and waits for its end.
  void end();

 private:
  int pid_ = -1;
  bool is_ready_ = false;
};

}  // namespace hicache::testing
