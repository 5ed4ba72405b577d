// A block device that does what a test says: it holds requests back, fails them, or serves them.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "io/block_device.h"

namespace hicache::testing {

/// What a test wants and sees; outlives the devices, which a reader may drop and make again.
struct DeviceScript {
  static constexpr int kNever = -1;

  /// An errno, 0 to serve the request, or kNever. Called when a request is submitted.
  std::function<int(const IoRequest&)> outcome_of = [](const IoRequest&) { return 0; };
  uint64_t pause_ms = 0;  // Before each completion.
  std::vector<IoRequest> requests;
  size_t devices = 0;
  size_t in_flight_max = 0;
};

class ScriptedDevice : public BlockDevice {
 public:
  ScriptedDevice(DeviceScript& script, uint32_t depth) : script_(script), depth_(depth) {
    ++script_.devices;
  }

  static auto maker(DeviceScript& script) {
    return [&script](const Options& options) -> Result<std::unique_ptr<BlockDevice>> {
      return std::unique_ptr<BlockDevice>(std::make_unique<ScriptedDevice>(script, options.depth));
    };
  }

  bool submit(IoRequest request) override {
    if (in_flight() == depth_) return false;
    script_.requests.push_back(request);
    const int outcome = script_.outcome_of(request);
    if (outcome == DeviceScript::kNever) {
      ++hanging_;
    } else {
      due_.emplace_back(std::move(request), outcome);
    }
    script_.in_flight_max = std::max(script_.in_flight_max, in_flight());
    return true;
  }

  /// Completes what wait() has let through, or everything when there is no pause.
  size_t poll(std::span<IoCompletion> completions) override {
    size_t count = 0;
    while (count < completions.size() && !due_.empty() && (script_.pause_ms == 0 || ripe_ != 0)) {
      auto [request, error] = std::move(due_.front());
      due_.pop_front();
      ripe_ -= ripe_ != 0;
      if (error == 0) error = serve(request);
      completions[count++] = {request.tag, error, 0};
    }
    return count;
  }

  bool wait(Deadline deadline) override {
    const auto pause = [](uint64_t ns) {
      const timespec time{static_cast<time_t>(ns / 1'000'000'000),
                          static_cast<long>(ns % 1'000'000'000)};
      nanosleep(&time, nullptr);
    };
    if (due_.empty()) {
      if (hanging_ != 0) pause(deadline.remaining_ns());
      return false;
    }
    const uint64_t pause_ns = script_.pause_ms * 1'000'000;
    if (pause_ns > deadline.remaining_ns()) {
      pause(deadline.remaining_ns());
      return false;
    }
    pause(pause_ns);
    ripe_ = 1;
    return true;
  }

  int event_fd() const override { return -1; }
  size_t in_flight() const override { return due_.size() + hanging_; }
  std::string_view engine_name() const override { return "script"; }

 private:
  static int serve(const IoRequest& request) {
    const ssize_t size =
        preadv(request.fd, request.parts.data(), static_cast<int>(request.parts.size()),
               static_cast<off_t>(request.offset));
    if (size < 0) return errno;
    return static_cast<uint64_t>(size) == request.size ? 0 : EIO;
  }

  DeviceScript& script_;
  const uint32_t depth_;
  std::deque<std::pair<IoRequest, int>> due_;
  size_t hanging_ = 0;
  size_t ripe_ = 0;
};

}  // namespace hicache::testing
