// A transfer engine in a process of its own, to be stopped and killed; and what tests of engines
// share.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "child_process.h"
#include "support.h"
#include "transfer/engine.h"

namespace hicache::testing {

inline constexpr uint64_t kEngineMemorySize = 4 * kMiB;

inline TransferEngine::Options engine_options(std::vector<TransportKind> transports) {
  TransferEngine::Options options{};
  options.bind_host = "127.0.0.1";
  options.public_host = "127.0.0.1";
  options.secret = secret_from_text("open sesame");
  options.transports = std::move(transports);
  options.tries_max = 4;
  options.batches_max = 64;
  options.requests_max = 4096;
  options.slices_max = 256;
  options.tcp_lanes = 2;
  options.tcp_io_threads = 1;
  options.tcp_checksum = true;
  options.local_copy_threads = 2;
  return options;
}

inline std::unique_ptr<TransferEngine> start_engine_of(const TransferEngine::Options& options) {
  std::vector<std::string> notices;
  Result<std::unique_ptr<TransferEngine>> engine = TransferEngine::start(options, notices);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? std::move(engine.value()) : nullptr;
}

inline uint64_t after_ms(uint64_t ms) {
  return monotonic_ns() + ms * 1'000'000;
}

/// The role "engine": serves memory of bytes_of(1, kEngineMemorySize), and writes into a file where
/// it listens, where its memory is, and the process id of a child that it has forked.
/// Arguments: "tcp" or "local" · port, 0 for any · "forks" or "alone" · the file.
inline int run_engine(const std::vector<std::string>& arguments) {
  auto options =
      engine_options({arguments.at(0) == "local" ? TransportKind::kLocal : TransportKind::kTcp});
  options.port_min = options.port_max = static_cast<uint16_t>(std::stoul(arguments.at(1)));
  static std::vector<uint8_t> memory = bytes_of(1, kEngineMemorySize);
  static std::unique_ptr<TransferEngine> engine = start_engine_of(options);
  const auto address = reinterpret_cast<uint64_t>(memory.data());
  if (!engine || !engine->register_memory(address, memory.size(), "*", true).ok()) return 1;
  pid_t child = 0;
  if (arguments.at(2) == "forks") {
    child = fork();
    if (child == 0) {
      close(STDOUT_FILENO);
      alarm(60);  // Should the test forget it.
      for (;;) pause();
    }
  }
  std::ofstream(arguments.at(3)) << engine->port() << " " << address << " " << child;
  if (write(STDOUT_FILENO, "r", 1) != 1) return 1;
  for (;;) pause();
}

/// Such a process, as its parent sees it.
class EnginePeer {
 public:
  explicit EnginePeer(const std::string& transport, uint16_t wanted_port = 0, bool forks = false)
      : file_(std::filesystem::temp_directory_path() /
              ("mooncake-hicache-engine-" + std::to_string(random_token()))),
        process_("engine",
                 {transport, std::to_string(wanted_port), forks ? "forks" : "alone", file_}) {
    EXPECT_TRUE(process_.is_ready());
    std::ifstream(file_) >> port >> memory >> child_;
  }
  ~EnginePeer() {
    process_.end();
    if (child_ > 0) kill(child_, SIGKILL);
    std::filesystem::remove(file_);
  }
  EnginePeer(const EnginePeer&) = delete;
  EnginePeer& operator=(const EnginePeer&) = delete;

  std::string address() const { return "127.0.0.1:" + std::to_string(port); }
  void stop() { process_.signal(SIGSTOP); }
  void go_on() { process_.signal(SIGCONT); }
  void end() { process_.end(); }

  uint16_t port = 0;
  uint64_t memory = 0;

 private:
  const std::string file_;
  ChildProcess process_;
  pid_t child_ = 0;
};

}  // namespace hicache::testing
