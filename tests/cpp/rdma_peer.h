// A transfer engine over real RDMA devices in a process of its own; and the control connection to
// one for programs that speak no C++.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "child_process.h"
#include "engine_peer.h"
#include "io/mapped_memory.h"
#include "transfer/control.h"
#include "transfer/engine.h"

namespace hicache::testing {

inline constexpr uint64_t kRdmaMemorySize = 64 * kMiB;

inline TransferEngine::Options rdma_engine_options(const std::string& devices) {
  auto options = engine_options({TransportKind::kRdma});
  options.rdma_devices = devices;
  return options;
}

/// The role "rdma_engine": serves memory of bytes_of(1, kRdmaMemorySize), and writes into a file
/// where it listens and where its memory is. Arguments: devices · the file.
inline int run_rdma_engine(const std::vector<std::string>& arguments) {
  static const MappedMemory memory = MappedMemory::make(kRdmaMemorySize);
  if (!memory.valid()) return 1;
  std::ranges::copy(bytes_of(1, kRdmaMemorySize), memory.address());
  static const auto engine = start_engine_of(rdma_engine_options(arguments.at(0)));
  const auto address = reinterpret_cast<uint64_t>(memory.address());
  if (!engine || !engine->register_memory(address, kRdmaMemorySize, "*", true).ok()) return 1;
  std::ofstream(arguments.at(1)) << engine->port() << " " << address;
  if (write(STDOUT_FILENO, "r", 1) != 1) return 1;
  for (;;) pause();
}

/// The role "rdma_control": asks the engine at a port what comes in by standard input, one question
/// per line: the op and the request in hexadecimal. Answers "ok" or "refused", and the reply or the
/// reason. Argument: the port.
inline int run_rdma_control(const std::vector<std::string>& arguments) {
  const Secret secret = engine_options({}).secret;
  const auto port = static_cast<uint16_t>(std::stoul(arguments.at(0)));
  const auto client =
      ControlClient::connect({"127.0.0.1", port}, secret, nullptr, 0, Deadline::after_ms(5000));
  if (!client.ok()) return 1;
  std::string op;
  std::string hex;
  while (std::cin >> op >> hex) {
    std::vector<uint8_t> request;
    for (size_t i = 1; i + 1 < hex.size(); i += 2) {  // After a "x", so that none is empty.
      request.push_back(static_cast<uint8_t>(std::stoul(hex.substr(i, 2), nullptr, 16)));
    }
    const auto reply = client.value()->call(static_cast<ControlOp>(std::stoul(op)), request,
                                            Deadline::after_ms(5000));
    std::printf("%s ", reply.ok() ? "ok" : "refused");
    if (!reply.ok()) std::printf("%s", reply.status().message().c_str());
    if (reply.ok()) {
      for (const uint8_t byte : reply.value()) std::printf("%02x", byte);
    }
    std::printf("\n");
    std::fflush(stdout);
  }
  return 0;
}

/// Such an engine, as its parent sees it.
class RdmaEnginePeer {
 public:
  explicit RdmaEnginePeer(const std::string& devices)
      : file_(std::filesystem::temp_directory_path() /
              ("mooncake-hicache-rdma-" + std::to_string(random_token()))),
        process_("rdma_engine", {devices, file_}) {
    EXPECT_TRUE(process_.is_ready());
    uint16_t port = 0;
    std::ifstream(file_) >> port >> memory;
    address = "127.0.0.1:" + std::to_string(port);
  }
  ~RdmaEnginePeer() { std::filesystem::remove(file_); }
  RdmaEnginePeer(const RdmaEnginePeer&) = delete;
  RdmaEnginePeer& operator=(const RdmaEnginePeer&) = delete;

  void end() { process_.end(); }

  std::string address;
  uint64_t memory = 0;

 private:
  const std::string file_;
  ChildProcess process_;
};

}  // namespace hicache::testing
