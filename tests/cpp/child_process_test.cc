#include "child_process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cluster_rig.h"
#include "engine_peer.h"
#include "node_bench.h"
#include "raw_client.h"
#include "rdma_peer.h"
#include "ssd_bench.h"
#include "store/node.h"
#include "tcp_rig.h"
#include "transport_contract.h"

namespace hicache::testing {
namespace {

int say_ready_and_wait() {
  if (write(STDOUT_FILENO, "r", 1) != 1) return 1;
  for (;;) pause();
}

int run_node(const std::vector<std::string>& arguments) {
  auto node = Node::start(node_options(arguments.at(0), std::stoull(arguments.at(1))));
  return node.ok() ? say_ready_and_wait() : 1;
}

int run_ssd_node(const std::vector<std::string>& arguments) {
  const SsdSetup setup{.write_through = arguments.at(2) == "through"};
  auto node = Node::start(ssd_node_options(arguments.at(0), {arguments.at(1)}, setup));
  if (node.ok()) return say_ready_and_wait();
  std::fprintf(stderr, "%s\n", node.status().message().c_str());
  return 1;
}

int run_reserve(const std::vector<std::string>& arguments) {
  auto client = RawClient::greeted(arguments.at(0));
  if (!client) return 1;
  const NamespaceIndex index = client->open_namespace(kTestNamespace);
  const Places places = client->reserve(index, keys_of(0, std::stoull(arguments.at(1))),
                                        std::stoull(arguments.at(2)));
  for (const Place& place : places.places) {
    if (place.code != Code::kOk) return 1;
    for (const Extent& extent : places.extents_of(place)) {
      std::memset(client->pool->address() + extent.offset, 0xEE, extent.size / 2);
    }
  }
  return say_ready_and_wait();
}

int run_lease(const std::vector<std::string>& arguments) {
  auto client = RawClient::greeted(arguments.at(0));
  if (!client) return 1;
  const NamespaceIndex index = client->open_namespace(kTestNamespace);
  const Places places = client->lease(index, keys_of(0, std::stoull(arguments.at(1))));
  for (const Place& place : places.places) {
    if (place.code != Code::kOk) return 1;
  }
  return say_ready_and_wait();
}

int run_tcp_peer(const std::vector<std::string>& arguments) {
  TcpSharedFile file(arguments.at(0));
  TcpEnd end;
  serve_tcp_peer(file, end);
  return say_ready_and_wait();
}

}  // namespace

int run_role(const std::string& role, const std::vector<std::string>& arguments) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // A test that crashes leaves nobody behind.
  if (role == "node") return run_node(arguments);
  if (role == "ssd_node") return run_ssd_node(arguments);
  if (role == "reserve") return run_reserve(arguments);
  if (role == "lease") return run_lease(arguments);
  if (role == "tcp_peer") return run_tcp_peer(arguments);
  if (role == "cluster_node") return run_cluster_node(arguments);
  if (role == "engine") return run_engine(arguments);
  if (role == "rdma_engine") return run_rdma_engine(arguments);
  if (role == "rdma_control") return run_rdma_control(arguments);
  if (role == "transport") return run_transport_target(arguments);
  return 2;
}

ChildProcess::ChildProcess(const std::string& role, const std::vector<std::string>& arguments) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return;
  const Fd read_end(ends[0]);
  Fd write_end(ends[1]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, write_end.get(), STDOUT_FILENO);
  std::vector<std::string> words{"hicache_tests", "--role=" + role};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  if (posix_spawn(&pid_, "/proc/self/exe", &actions, nullptr, argv.data(), environ) != 0) pid_ = -1;
  posix_spawn_file_actions_destroy(&actions);
  write_end.reset();
  char byte;
  is_ready_ = pid_ > 0 && read(read_end.get(), &byte, 1) == 1;
}

ChildProcess::~ChildProcess() {
  end();
}

void ChildProcess::signal(int number) {
  if (pid_ <= 0) return;
  kill(pid_, number);
  int status;
  if (number == SIGSTOP) waitpid(pid_, &status, WUNTRACED);  // Until it has really stopped.
}

void ChildProcess::end() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

}  // namespace hicache::testing
