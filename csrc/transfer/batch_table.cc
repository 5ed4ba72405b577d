#include "transfer/batch_table.h"

#include <algorithm>
#include <string>
#include <utility>

namespace hicache {
namespace {

/// A slot keeps the memory of its last batch's requests, if it is no more than this.
constexpr size_t kRequestsKept = 1024;

constexpr size_t kLevels = 2;

/// More cannot be meant, and sums of less do not wrap.
constexpr uint64_t kBytesMax = uint64_t{1} << 60;

}  // namespace

const BatchTable::Batch* BatchTable::find_batch(BatchKey key) const {
  if (key.slot >= batches_.size()) return nullptr;
  const Batch& batch = batches_[key.slot];
  return batch.in_use && batch.generation == key.generation ? &batch : nullptr;
}

BatchTable::Settled BatchTable::settled(uint32_t slot) const {
  return {{slot, batches_[slot].generation}, batches_[slot].is_done()};
}

Result<BatchKey> BatchTable::add(std::span<const Request> requests, Priority priority,
                                 uint64_t deadline_ns, uint32_t generation) {
  if (batch_count_ >= limits_.batches_max) {
    return Status(Code::kBusy, std::to_string(batch_count_) +
                                   " batches of this peer are open: wait for some and release "
                                   "them, or raise batches_max");
  }
  if (requests.size() > limits_.requests_max - std::min(request_count_, limits_.requests_max)) {
    return Status(Code::kBusy, std::to_string(requests.size()) + " requests beside the " +
                                   std::to_string(request_count_) +
                                   " of this peer's open batches: wait for some, or raise "
                                   "requests_max");
  }
  uint64_t bytes = waiting_bytes_;
  for (const Request& request : requests) {
    bytes = std::min(bytes + std::min(request.size, kBytesMax), kBytesMax);
  }
  if (bytes == kBytesMax) {
    return Status(Code::kInvalidArgument, "the requests ask for more bytes than any machine has");
  }
  if (free_batches_.empty()) {
    free_batches_.push_back(static_cast<uint32_t>(batches_.size()));
    batches_.emplace_back();
  }
  const uint32_t slot = free_batches_.back();
  free_batches_.pop_back();
  Batch& batch = batches_[slot];
  batch.generation = generation;
  batch.priority = priority;
  batch.in_use = true;
  batch.next_request = 0;
  batch.next_offset = 0;
  batch.bytes_done = 0;
  batch.deadline_ns = deadline_ns;
  batch.status = Status();
  for (const Request& request : requests) {
    if (request.size == 0) continue;
    batch.requests.push_back(request);
    waiting_bytes_ += request.size;
  }
  ++batch_count_;
  request_count_ += batch.requests.size();
  if (!batch.is_cut()) uncut_[level(batch)].push_back(slot);
  return BatchKey{slot, generation};
}

std::optional<BatchTable::Place> BatchTable::place() const {
  for (size_t level = 0; level < kLevels; ++level) {
    if (!retries_[level].empty()) return Place{level, true};
    // Without room for more slices, those that there are must go on: whatever their priority.
    if (!uncut_[level].empty() && slice_count() < limits_.slices_max) return Place{level, false};
  }
  return std::nullopt;
}

std::optional<BatchTable::Next> BatchTable::next() const {
  if (waiting_bytes_ == 0) return std::nullopt;
  const std::optional<Place> from = place();
  if (!from) return std::nullopt;
  if (from->is_retry) {
    const Slice& slice = slices_[retries_[from->level].front()];
    const Request& request = batches_[slice.batch].requests[slice.request];
    return Next{slice.size, slice.rail,         slice.without,       slice.tier_min,
                true,       deadline_of(slice), request.local_buffer};
  }
  const Batch& batch = batches_[uncut_[from->level].front()];
  const Request& request = batch.requests[batch.next_request];
  const uint64_t left = request.size - batch.next_offset;
  return Next{left, kNoRail, {}, 0, false, batch.deadline_ns, request.local_buffer};
}

uint32_t BatchTable::cut(uint32_t batch_slot, uint64_t size_max) {
  if (free_slices_.empty()) {
    free_slices_.push_back(static_cast<uint32_t>(slices_.size()));
    slices_.emplace_back();
  }
  const uint32_t slot = free_slices_.back();
  free_slices_.pop_back();
  Batch& batch = batches_[batch_slot];
  const uint64_t left = batch.requests[batch.next_request].size - batch.next_offset;
  Slice& slice = slices_[slot];
  slice.batch = batch_slot;
  slice.request = batch.next_request;
  slice.tries = 0;
  slice.without.reset();
  slice.tier_min = 0;
  slice.was_parked = false;
  slice.offset = batch.next_offset;
  slice.size = std::min(left, std::max<uint64_t>(size_max, 1));
  batch.next_offset += slice.size;
  if (slice.size == left) {
    ++batch.next_request;
    batch.next_offset = 0;
  }
  return slot;
}

void BatchTable::take(RailIndex rail, uint64_t size_max, uint64_t now_ns, Op& op) {
  const Place from = *place();
  uint32_t slot = 0;
  if (from.is_retry) {
    slot = retries_[from.level].front();
    retries_[from.level].pop_front();
    --batches_[slices_[slot].batch].retries;
  } else {
    const uint32_t batch = uncut_[from.level].front();
    slot = cut(batch, size_max);
    uncut_[from.level].pop_front();
    if (!batches_[batch].is_cut()) uncut_[from.level].push_back(batch);
  }
  Slice& slice = slices_[slot];
  slice.generation = (slice.generation + 1) & INT32_MAX;  // Tokens are below 2^63.
  ++slice.tries;
  slice.rail = rail;
  slice.in_flight = true;
  slice.started_ns = now_ns;
  ++batches_[slice.batch].in_flight;
  waiting_bytes_ -= slice.size;
  fill(slot, op);
}

void BatchTable::fill(uint32_t slot, Op& op) const {
  const Slice& slice = slices_[slot];
  const Batch& batch = batches_[slice.batch];
  const Request& request = batch.requests[slice.request];
  op = {request.direction,
        batch.priority,
        request.local_address + slice.offset,
        request.local_buffer,
        request.remote_address + slice.offset,
        request.remote_buffer,
        slice.size,
        batch.deadline_ns,
        token_of(slot, slice),
        slice.size == request.size ? request.arrival : nullptr};
}

const BatchTable::Slice* BatchTable::find(uint64_t token) const {
  const auto slot = static_cast<uint32_t>(token);
  if (slot >= slices_.size()) return nullptr;
  const Slice& slice = slices_[slot];
  return slice.in_flight && slice.generation == token >> 32 ? &slice : nullptr;
}

BatchTable::Settled BatchTable::undo(uint64_t token) {
  const auto slot = static_cast<uint32_t>(token);
  Slice& slice = slices_[slot];
  const uint32_t batch_slot = slice.batch;
  Batch& batch = batches_[batch_slot];
  slice.in_flight = false;
  slice.rail = kNoRail;
  --slice.tries;
  --batch.in_flight;
  if (!batch.status.ok()) {  // It has failed meanwhile.
    free_slice(slot);
    return settled(batch_slot);
  }
  ++batch.retries;
  waiting_bytes_ += slice.size;
  retries_[level(batch)].push_front(slot);
  return settled(batch_slot);
}

BatchTable::Settled BatchTable::drop_next(Status status) {
  const Place from = *place();
  const uint32_t batch =
      from.is_retry ? slices_[retries_[from.level].front()].batch : uncut_[from.level].front();
  fail(batch, std::move(status));
  return settled(batch);
}

void BatchTable::free_slice(uint32_t slot) {
  free_slices_.push_back(slot);
}

BatchTable::Settled BatchTable::settle(uint64_t token, Verdict verdict, Status status,
                                       uint64_t now_ns) {
  const auto slot = static_cast<uint32_t>(token);
  Slice& slice = slices_[slot];
  const uint32_t batch_slot = slice.batch;
  Batch& batch = batches_[batch_slot];
  slice.in_flight = false;
  --batch.in_flight;
  if (verdict == Verdict::kRetryOtherRail && slice.rail >= slice.without.size()) {
    verdict = Verdict::kRetryWorseTier;
  }
  if (verdict == Verdict::kRetryOtherRail) --slice.tries;
  const bool may_retry =
      batch.status.ok() && now_ns < batch.deadline_ns &&
      (verdict == Verdict::kPark ? !slice.was_parked : slice.tries < limits_.tries_max);
  if (verdict == Verdict::kDone) {
    batch.bytes_done += slice.size;
    free_slice(slot);
  } else if (verdict == Verdict::kFail || !may_retry) {
    free_slice(slot);
    fail(batch_slot, std::move(status));
  } else if (verdict == Verdict::kPark) {
    slice.was_parked = true;
    slice.parked_at = ++parks_;
    slice.rail = kNoRail;  // It is not to blame.
    slice.without.reset();
    ++batch.parked;
    parked_.push_back(slot);
  } else {
    if (verdict == Verdict::kRetryWorseTier) ++slice.tier_min;
    if (verdict == Verdict::kRetryOtherRail) slice.without.set(slice.rail);
    wait_again(slot);
  }
  return settled(batch_slot);
}

void BatchTable::wait_again(uint32_t slot) {
  Batch& batch = batches_[slices_[slot].batch];
  ++batch.retries;
  waiting_bytes_ += slices_[slot].size;
  retries_[level(batch)].push_back(slot);
}

void BatchTable::unpark(uint64_t parks_max, const std::function<Status(Request&)>& look_up,
                        std::vector<BatchKey>& done) {
  // One by one: the failure of one drops the others of its batch.
  while (!parked_.empty() && slices_[parked_.front()].parked_at <= parks_max) {
    const uint32_t slot = parked_.front();
    parked_.pop_front();
    const uint32_t batch_slot = slices_[slot].batch;
    Batch& batch = batches_[batch_slot];
    --batch.parked;
    Status status = look_up(batch.requests[slices_[slot].request]);
    if (status.ok()) {
      wait_again(slot);
      continue;
    }
    free_slice(slot);
    fail(batch_slot, std::move(status));
    if (batch.is_done()) done.push_back({batch_slot, batch.generation});
  }
}

void BatchTable::fail(uint32_t batch_slot, Status status) {
  Batch& batch = batches_[batch_slot];
  if (batch.status.ok()) batch.status = std::move(status);
  drop_waiting(batch_slot);
}

void BatchTable::drop_waiting(uint32_t batch_slot) {
  Batch& batch = batches_[batch_slot];
  if (batch.retries != 0) {
    std::erase_if(retries_[level(batch)], [&](uint32_t slot) {
      if (slices_[slot].batch != batch_slot) return false;
      waiting_bytes_ -= slices_[slot].size;
      free_slice(slot);
      return true;
    });
    batch.retries = 0;
  }
  if (batch.parked != 0) {
    std::erase_if(parked_, [&](uint32_t slot) {
      if (slices_[slot].batch != batch_slot) return false;
      free_slice(slot);
      return true;
    });
    batch.parked = 0;
  }
  if (batch.is_cut()) return;
  std::erase(uncut_[level(batch)], batch_slot);
  for (size_t i = batch.next_request; i < batch.requests.size(); ++i) {
    waiting_bytes_ -= batch.requests[i].size;
  }
  waiting_bytes_ += batch.next_offset;
  batch.next_request = static_cast<uint32_t>(batch.requests.size());
  batch.next_offset = 0;
}

std::optional<BatchState> BatchTable::state(BatchKey key) const {
  const Batch* batch = find_batch(key);
  if (batch == nullptr) return std::nullopt;
  return BatchState{batch->is_done(), batch->bytes_done, batch->status};
}

bool BatchTable::cancel(BatchKey key, const Status& status) {
  const Batch* batch = find_batch(key);
  if (batch == nullptr || batch->is_done()) return false;
  fail(key.slot, status);
  return batch->is_done();
}

void BatchTable::cancel_all(const Status& status, std::vector<BatchKey>& done) {
  for (uint32_t slot = 0; slot < batches_.size(); ++slot) {
    const BatchKey key{slot, batches_[slot].generation};
    if (cancel(key, status)) done.push_back(key);
  }
}

void BatchTable::expire(uint64_t now_ns, const std::string& last_failure,
                        std::vector<BatchKey>& done) {
  if (waiting_bytes_ == 0 && parked_.empty()) return;
  for (uint32_t slot = 0; slot < batches_.size(); ++slot) {
    const Batch& batch = batches_[slot];
    if (!batch.waits() || batch.deadline_ns > now_ns) continue;
    fail(slot, Status(Code::kTimeout,
                      "the deadline passed with " + std::to_string(batch.bytes_done) +
                          " bytes moved, while the rest waited for a path" +
                          (last_failure.empty() ? "" : "; last failure: ") + last_failure));
    if (batch.is_done()) done.push_back({slot, batch.generation});
  }
}

uint64_t BatchTable::next_deadline_ns() const {
  uint64_t next_ns = UINT64_MAX;
  if (waiting_bytes_ == 0 && parked_.empty()) return next_ns;
  for (const Batch& batch : batches_) {
    if (batch.waits()) next_ns = std::min(next_ns, batch.deadline_ns);
  }
  return next_ns;
}

bool BatchTable::release(BatchKey key) {
  const Batch* found = find_batch(key);
  if (found == nullptr || !found->is_done()) return false;
  Batch& batch = batches_[key.slot];
  request_count_ -= batch.requests.size();
  --batch_count_;
  batch.in_use = false;
  batch.status = Status();
  batch.requests.clear();
  if (batch.requests.capacity() > kRequestsKept) batch.requests.shrink_to_fit();
  free_batches_.push_back(key.slot);
  return true;
}

}  // namespace hicache
