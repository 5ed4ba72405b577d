// Ends of another version of the protocol, for tests.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <xxhash.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "directory/frame_pipe.h"
#include "io/tcp_socket.h"
#include "io/unix_socket.h"
#include "net/secure_channel.h"

namespace hicache::testing {

inline constexpr uint16_t kOtherVersion = kProtocolVersion + 1;

/// A frame as a process of another version would have sent it.
inline std::vector<uint8_t> of_other_version(std::vector<uint8_t> frame) {
  constexpr size_t kVersionAt = 4;
  constexpr size_t kCheckAt = 12;
  std::memcpy(frame.data() + kVersionAt, &kOtherVersion, sizeof(kOtherVersion));
  std::memset(frame.data() + kCheckAt, 0, sizeof(uint32_t));
  const auto check = static_cast<uint32_t>(XXH3_64bits(frame.data(), kFrameHeaderSize));
  std::memcpy(frame.data() + kCheckAt, &check, sizeof(check));
  return frame;
}

inline std::vector<uint8_t> version_frame() {
  std::vector<uint8_t> frame;
  begin_frame(frame);
  seal_frame(frame, kVersionOp, 0);
  return frame;
}

/// Whether a message tells of both versions, and what to do.
inline ::testing::AssertionResult names_both(const std::string& message) {
  for (const std::string& wanted :
       {"version " + std::to_string(kOtherVersion), "version " + std::to_string(kProtocolVersion),
        std::string("install the same release")}) {
    if (message.find(wanted) == std::string::npos) {
      return ::testing::AssertionFailure() << "no \"" << wanted << "\" in: " << message;
    }
  }
  return ::testing::AssertionSuccess();
}

/// Greets whoever comes, and answers the first frame as a process of another version does.
class OtherVersion {
 public:
  OtherVersion(Secret secret, uint64_t epoch)
      : secret_(secret),
        epoch_(epoch),
        listening_(std::move(tcp_listen("127.0.0.1", 0, 0).value())) {
    thread_ = std::thread([this] { serve(); });
  }
  ~OtherVersion() {
    stopping_ = true;
    thread_.join();
  }
  uint16_t port() const { return listening_.port; }

 private:
  void serve() {
    while (!stopping_) {
      pollfd waited{listening_.fd.get(), POLLIN, 0};
      if (poll(&waited, 1, 20) == 0) continue;
      Result<Fd> accepted = tcp_accept(listening_.fd);
      if (!accepted.ok() || !accepted.value().valid()) continue;
      const Fd& socket = accepted.value();
      const Deadline deadline = Deadline::after_ms(2000);
      std::vector<uint8_t> header(kFrameHeaderSize);
      if (!greet_client(socket, secret_, epoch_, deadline).ok() ||
          !receive_all(socket, header, deadline).ok()) {
        continue;
      }
      (void)send_all(socket, of_other_version(version_frame()), deadline);
    }
  }

  const Secret secret_;
  const uint64_t epoch_;
  Listening listening_;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace hicache::testing
