#include "transfer/rdma/op_queue.h"

#include <algorithm>
#include <cassert>
#include <utility>

namespace hicache {

OpQueue::OpQueue(size_t ops_max, uint64_t part_size_max)
    : part_size_max_(part_size_max), entries_(ops_max) {
  for (size_t i = ops_max; i-- > 0;) free_.push_back(static_cast<OpSlot>(i));
}

OpSlot OpQueue::add(const Op& op, KeyedRange local, KeyedRange remote) {
  assert(has_room() && op.size > 0);
  const OpSlot slot = free_.back();
  free_.pop_back();
  Entry& entry = entries_[slot];
  entry = Entry{};
  entry.op = op;
  entry.local = std::move(local);
  entry.remote = std::move(remote);
  entry.left = op.size;
  entry.is_used = true;
  waiting_[static_cast<size_t>(op.priority)].push_back(slot);
  return slot;
}

bool OpQueue::has_work() const {
  return !again_.empty() || !waiting_[0].empty() || !waiting_[1].empty();
}

WorkPart OpQueue::take() {
  assert(has_work());
  if (!again_.empty()) {
    const WorkPart part = again_.front();
    again_.pop_front();
    ++entries_[part.slot].under_way;
    return part;
  }
  std::deque<OpSlot>& waiting = waiting_[waiting_[0].empty() ? 1 : 0];
  const OpSlot slot = waiting.front();
  Entry& entry = entries_[slot];
  const uint64_t offset = entry.cut;
  const uint64_t size = std::min({
      part_size_max_,
      entry.op.size - offset,
      entry.local.left_in_piece(entry.op.local_address + offset),
      entry.remote.left_in_piece(entry.op.remote_address + offset),
  });
  entry.cut += size;
  ++entry.under_way;
  if (entry.cut == entry.op.size) waiting.pop_front();
  return {slot, offset, size};
}

WorkOrder OpQueue::order(const WorkPart& part) const {
  const Entry& entry = entries_[part.slot];
  const uint64_t local = entry.op.local_address + part.offset;
  const uint64_t remote = entry.op.remote_address + part.offset;
  return {entry.op.direction, local, entry.local.key_at(local), remote,
          entry.remote.key_at(remote)};
}

bool OpQueue::is_over(const Entry& entry) const {
  return entry.under_way == 0 && (entry.left == 0 || !entry.failure.ok());
}

bool OpQueue::part_done(const WorkPart& part) {
  Entry& entry = entries_[part.slot];
  assert(entry.is_used && entry.under_way > 0 && entry.left >= part.size);
  --entry.under_way;
  entry.left -= part.size;
  return is_over(entry);
}

bool OpQueue::part_lost(const WorkPart& part) {
  Entry& entry = entries_[part.slot];
  assert(entry.is_used && entry.under_way > 0);
  --entry.under_way;
  if (entry.failure.ok()) again_.push_back(part);
  return is_over(entry);
}

bool OpQueue::fail(OpSlot slot, const Status& status) {
  Entry& entry = entries_[slot];
  assert(entry.is_used && !status.ok());
  if (entry.failure.ok()) {
    entry.failure = status;
    std::erase(waiting_[static_cast<size_t>(entry.op.priority)], slot);
    std::erase_if(again_, [slot](const WorkPart& part) { return part.slot == slot; });
  }
  return is_over(entry);
}

OpQueue::Over OpQueue::remove(OpSlot slot) {
  Entry& entry = entries_[slot];
  assert(entry.is_used && is_over(entry));
  // All bytes are there: whatever was decided about it meanwhile came too late.
  Over over{entry.op.token, entry.left == 0 ? Status() : std::move(entry.failure)};
  entry = Entry{};
  free_.push_back(slot);
  return over;
}

std::vector<OpSlot> OpQueue::slots() const {
  std::vector<OpSlot> used;
  for (OpSlot slot = 0; slot < entries_.size(); ++slot) {
    if (entries_[slot].is_used) used.push_back(slot);
  }
  return used;
}

std::vector<OpSlot> OpQueue::expired(uint64_t now_ns) const {
  std::vector<OpSlot> slots;
  for (OpSlot slot = 0; slot < entries_.size(); ++slot) {
    const Entry& entry = entries_[slot];
    if (entry.is_used && entry.failure.ok() && entry.op.deadline_ns <= now_ns) {
      slots.push_back(slot);
    }
  }
  return slots;
}

uint64_t OpQueue::next_deadline_ns() const {
  uint64_t next_ns = UINT64_MAX;
  for (const Entry& entry : entries_) {
    if (entry.is_used && entry.failure.ok()) next_ns = std::min(next_ns, entry.op.deadline_ns);
  }
  return next_ns;
}

}  // namespace hicache
