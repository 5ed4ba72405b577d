// A path whose ops may have their local end in memory of a GPU, around one that knows only memory
// of the CPU.
//
// Ops on memory of the CPU go through as they are. Others are cut into parts of one slot: a part of
// a WRITE is copied out of the GPU and then sent from the slot, a part of a READ arrives in the
// slot and is then copied into the GPU, so that one part is copied while others are on the wire. An
// op is complete when the last copy of it is.
//
// Not here: the GPU at the other end, which is the peer's.
//
// Threads: as Path.
#pragma once

#include <memory>
#include <string>

#include "transfer/device_staging.h"
#include "transfer/transport.h"

namespace hicache {

class StagedPath : public Path {
 public:
  /// What the inner path takes as its sink.
  class State;
  static std::shared_ptr<State> make_state(DeviceStaging& staging, CompletionSink& sink);
  static CompletionSink& inner_sink(State& state);

  /// `staging` and the sink that `state` was made with outlive it.
  StagedPath(std::shared_ptr<State> state, std::unique_ptr<Path> inner);
  ~StagedPath() override { close(); }

  const std::string& name() const override { return inner_->name(); }
  std::string_view device() const override { return inner_->device(); }
  PathCost cost() const override { return inner_->cost(); }
  uint64_t slice_size_bytes() const override { return inner_->slice_size_bytes(); }
  size_t submit(std::span<const Op> ops) override;
  Status probe() override { return inner_->probe(); }
  void close() override;

 private:
  const std::shared_ptr<State> state_;
  const std::unique_ptr<Path> inner_;  // Ends before its sink.
};

}  // namespace hicache
