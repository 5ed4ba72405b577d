#include "transfer/tcp/op_table.h"

#include <algorithm>
#include <cassert>

namespace hicache {

OpTable::OpTable(size_t ops_max, uint64_t part_size) : part_size_(part_size), entries_(ops_max) {
  for (size_t i = ops_max; i > 0; --i) free_.push_back(static_cast<uint32_t>(i - 1));
}

bool OpTable::add(const Op& op) {
  assert(op.size != 0);
  if (free_.empty()) return false;
  const uint32_t index = free_.back();
  free_.pop_back();
  entries_[index] = Entry{.op = op, .failure = Status()};
  queue(op.priority).push_back(index);
  return true;
}

OpPart OpTable::peek(Priority priority) const {
  const std::deque<uint32_t>& waiting = queue(priority);
  assert(!waiting.empty());
  const uint32_t index = waiting.front();
  const Entry& entry = entries_[index];
  const Op& op = entry.op;
  return OpPart{
      .op = index,
      .direction = op.direction,
      .priority = op.priority,
      .local_address = op.local_address + entry.cut,
      .remote_buffer = op.remote_buffer,
      .remote_address = op.remote_address + entry.cut,
      .size = std::min(part_size_, op.size - entry.cut),
      .deadline_ns = op.deadline_ns,
      .arrival = op.direction == Direction::kRead && op.size <= part_size_ ? op.arrival : nullptr};
}

OpPart OpTable::take(Priority priority) {
  const OpPart part = peek(priority);
  Entry& entry = entries_[part.op];
  entry.cut += part.size;
  ++entry.under_way;
  if (entry.cut == entry.op.size) queue(priority).pop_front();
  return part;
}

void OpTable::fail(Entry& entry, uint32_t op, const Status& status) {
  if (entry.failure.ok()) entry.failure = status;
  if (entry.cut == entry.op.size) return;
  std::erase(queue(entry.op.priority), op);
  entry.cut = entry.op.size;
}

void OpTable::complete_if_over(uint32_t op, std::vector<OpDone>& done) {
  Entry& entry = entries_[op];
  if (entry.under_way != 0 || entry.cut != entry.op.size) return;
  done.push_back({entry.op.token, std::move(entry.failure)});
  entry.failure = Status();
  free_.push_back(op);
}

void OpTable::finish(uint32_t op, const Status& status, std::vector<OpDone>& done) {
  Entry& entry = entries_[op];
  assert(entry.under_way != 0);
  --entry.under_way;
  if (!status.ok()) fail(entry, op, status);
  complete_if_over(op, done);
}

template <typename Wanted>
void OpTable::fail_where(const Status& status, std::vector<OpDone>& done, Wanted is_wanted) {
  std::vector<uint32_t> failed;
  for (const std::deque<uint32_t>* waiting : {&urgent_, &background_}) {
    std::copy_if(waiting->begin(), waiting->end(), std::back_inserter(failed),
                 [&](uint32_t op) { return is_wanted(entries_[op].op); });
  }
  for (const uint32_t op : failed) {
    fail(entries_[op], op, status);
    complete_if_over(op, done);
  }
}

void OpTable::expire(uint64_t now_ns, std::vector<OpDone>& done) {
  fail_where(Status(Code::kTimeout, "the op waited for a TCP lane until its deadline"), done,
             [&](const Op& op) { return op.deadline_ns <= now_ns; });
}

void OpTable::fail_queued(const Status& status, std::vector<OpDone>& done) {
  fail_where(status, done, [](const Op&) { return true; });
}

uint64_t OpTable::earliest_deadline() const {
  uint64_t earliest = kNever;
  for (const std::deque<uint32_t>* waiting : {&urgent_, &background_}) {
    for (const uint32_t op : *waiting) earliest = std::min(earliest, entries_[op].op.deadline_ns);
  }
  return earliest;
}

}  // namespace hicache
