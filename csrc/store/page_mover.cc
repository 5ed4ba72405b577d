#include "store/page_mover.h"

#include <pthread.h>

#include <algorithm>
#include <iterator>

#include "base/clock.h"
#include "transfer/checksum_copy.h"
#include "transfer/tcp/slice_checksum.h"

namespace hicache {
namespace {

constexpr uint64_t kMs = 1'000'000;
constexpr uint64_t kLookAgainMs = 5;
constexpr size_t kRequestsPerBatchMax = 1024;
static_assert(kStripeSize <= kArrivalSizeMax);

}  // namespace

uint64_t scattered_checksum(const uint8_t* pool, std::span<const Extent> extents) {
  uint64_t size = 0;
  for (const Extent& extent : extents) size += extent.size;
  SliceChecksum stripe;
  std::vector<uint64_t> stripes;
  uint64_t left = std::min(size, kStripeSize);  // Of the stripe.
  for (const Extent& extent : extents) {
    for (uint64_t at = 0; at < extent.size;) {
      const uint64_t piece = std::min(left, extent.size - at);
      stripe.add(pool + extent.offset + at, piece);
      at += piece;
      left -= piece;
      if (left != 0) continue;
      stripes.push_back(stripe.finish());
      stripe.start();
      left = std::min(size - std::min(size, stripes.size() * kStripeSize), kStripeSize);
    }
  }
  return fold_stripes(stripes, size);
}

Code outcome_of(const uint8_t* pool, const PeerReader::Page& page, Code failed) {
  if (scattered_checksum(pool, page.local) == page.checksum) return Code::kOk;
  return failed == Code::kOk ? Code::kCorrupt : failed;
}

PageMover::PageMover(TransferEngine& engine, Options options, Done done)
    : engine_(engine), options_(std::move(options)), done_(std::move(done)) {
  thread_ = std::thread([this] { run(); });
  pthread_setname_np(thread_.native_handle(), "mh-page-mover");
}

PageMover::~PageMover() {
  stop_soon();
  if (thread_.joinable()) thread_.join();
}

void PageMover::stop_soon() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
}

void PageMover::read(std::vector<Page> pages, Priority priority, uint64_t deadline_ns) {
  std::deque<Group> groups;
  size_t request_count = 0;
  for (Page& page : pages) {
    const size_t requests =
        page.local.size() + page.remote.size() + static_cast<size_t>(stripe_count(page.size));
    if (groups.empty() || groups.back().size + page.size > options_.batch_bytes ||
        request_count + requests > kRequestsPerBatchMax) {
      groups.emplace_back();
      groups.back().priority = priority;
      groups.back().deadline_ns = deadline_ns;
      request_count = 0;
    }
    groups.back().size += page.size;
    groups.back().pages.push_back(std::move(page));
    request_count += requests;
  }
  {
    const std::lock_guard lock(mutex_);
    auto& queue = priority == Priority::kUrgent ? urgent_ : background_;
    for (Group& group : groups) queue.push_back(std::move(group));
  }
  work_.notify_one();
}

// ---------------------------------------------------------------- the thread

void PageMover::run() {
  while (true) {
    Group group;
    while (take(group)) {
      const Status begun = submit(group);
      if (!begun.ok()) {
        report(group, begun.code());
        continue;
      }
      in_flight_bytes_ += group.size;
      if (group.priority == Priority::kUrgent) urgent_in_flight_bytes_ += group.size;
      in_flight_.push_back(std::move(group));
    }
    if (!in_flight_.empty()) {
      finish_some();
      continue;
    }
    std::unique_lock lock(mutex_);
    work_.wait(lock, [this] { return stopping_ || !urgent_.empty() || !background_.empty(); });
    if (stopping_ && urgent_.empty() && background_.empty()) break;
  }
  if (is_open_) engine_.close_segment(segment_);
  has_ended_ = true;
}

bool PageMover::take(Group& group) {
  const std::lock_guard lock(mutex_);
  std::deque<Group>& queue = urgent_.empty() ? background_ : urgent_;
  if (queue.empty()) return false;
  // What is only expected may have stalled: what is urgent finds a window of its own.
  const uint64_t taken = urgent_.empty() ? in_flight_bytes_ : urgent_in_flight_bytes_;
  if (taken >= options_.window_bytes && !stopping_) return false;
  group = std::move(queue.front());
  queue.pop_front();
  return true;
}

Status PageMover::open(uint64_t deadline_ns) {
  if (is_open_ && !engine_.is_lost(segment_)) return Status();
  if (std::exchange(is_open_, false)) engine_.close_segment(segment_);
  const Result<SegmentId> segment = engine_.open_segment(
      options_.address, std::min(deadline_ns, monotonic_ns() + options_.open_timeout_ms * kMs));
  if (!segment.ok()) return segment.status();
  segment_ = segment.value();
  is_open_ = true;
  return Status();
}

Status PageMover::submit(Group& group) {
  if (stopping_) return Status(Code::kClosed, "the node stops");
  if (monotonic_ns() >= group.deadline_ns) {
    return Status(Code::kTimeout, "pages of a peer had to wait too long");
  }
  HICACHE_RETURN_IF_ERROR(open(group.deadline_ns));
  const Result<BatchId> batch =
      engine_.submit(segment_, requests_of(group), group.priority, group.deadline_ns);
  if (!batch.ok()) return batch.status();
  group.batch = batch.value();
  return Status();
}

/// In the order of the pages' bytes, none longer than a stripe.
std::vector<TransferRequest> PageMover::requests_of(Group& group) const {
  std::vector<TransferRequest> requests;
  group.first_sums.clear();
  for (const Page& page : group.pages) {
    group.first_sums.push_back(requests.size());
    add_requests(page, requests);
  }
  group.sums.assign(requests.size(), ArrivalSum());
  if (group.is_second) return requests;
  for (size_t i = 0; i < requests.size(); ++i) requests[i].arrival = &group.sums[i];
  return requests;
}

void PageMover::add_requests(const Page& page, std::vector<TransferRequest>& requests) const {
  size_t l = 0;
  size_t r = 0;
  uint64_t local_at = 0;
  uint64_t remote_at = 0;
  uint64_t left = kStripeSize;  // Of the stripe.
  while (l < page.local.size() && r < page.remote.size()) {
    const Extent& local = page.local[l];
    const Extent& remote = page.remote[r];
    const uint64_t size = std::min({left, local.size - local_at, remote.size - remote_at});
    requests.push_back({Direction::kRead,
                        reinterpret_cast<uint64_t>(options_.pool + local.offset) + local_at,
                        options_.remote_pool_address + remote.offset + remote_at, size});
    left = left == size ? kStripeSize : left - size;
    local_at += size;
    remote_at += size;
    if (local_at == local.size) {
      ++l;
      local_at = 0;
    }
    if (remote_at == remote.size) {
      ++r;
      remote_at = 0;
    }
  }
}

Code PageMover::outcome(const Group& group, size_t n, Code failed) const {
  const Page& page = group.pages[n];
  const size_t end = n + 1 < group.pages.size() ? group.first_sums[n + 1] : group.sums.size();
  const auto sums = std::span(group.sums).subspan(group.first_sums[n], end - group.first_sums[n]);
  // As many as there are stripes: each is a stripe.
  const bool is_summed =
      sums.size() == stripe_count(page.size) && std::ranges::all_of(sums, &ArrivalSum::is_known);
  if (!is_summed) return outcome_of(options_.pool, page, failed);
  std::vector<uint64_t> stripes;
  std::ranges::transform(sums, std::back_inserter(stripes), &ArrivalSum::value);
  return fold_stripes(stripes, page.size) == page.checksum ? Code::kOk : Code::kCorrupt;
}

void PageMover::finish_some() {
  bool is_some_over = false;
  for (size_t i = 0; i < in_flight_.size();) {
    const Result<BatchState> state = engine_.poll(in_flight_[i].batch);
    const bool is_over = !state.ok() || state.value().is_done ||
                         monotonic_ns() >= in_flight_[i].deadline_ns + kDeadlineGraceMs * kMs;
    if (!is_over) {
      ++i;
      continue;
    }
    is_some_over = true;
    Group group = std::move(in_flight_[i]);
    in_flight_.erase(in_flight_.begin() + static_cast<ptrdiff_t>(i));
    in_flight_bytes_ -= group.size;
    if (group.priority == Priority::kUrgent) urgent_in_flight_bytes_ -= group.size;
    finish(std::move(group), state);
  }
  if (is_some_over) return;
  // What somebody waits for first. Not for long: something else may be done, or come, meanwhile.
  auto waited = std::ranges::find(in_flight_, Priority::kUrgent, &Group::priority);
  if (waited == in_flight_.end()) waited = in_flight_.begin();
  (void)engine_.wait(waited->batch, monotonic_ns() + kLookAgainMs * kMs);
}

void PageMover::finish(Group group, const Result<BatchState>& state) {
  // Blocks until none of its bytes is in flight.
  const Status released = engine_.release(group.batch);
  Code failed = Code::kOk;
  if (!state.ok()) {
    failed = state.status().code();
  } else if (!state.value().is_done) {
    failed = Code::kTimeout;
  } else {
    failed = state.value().status.code();
  }
  if (!released.ok() && failed == Code::kOk) failed = released.code();
  std::vector<Outcome> outcomes;
  Group again;
  for (size_t n = 0; n < group.pages.size(); ++n) {
    const Code code = outcome(group, n, failed);
    if (code == Code::kCorrupt && !group.is_second) {
      again.size += group.pages[n].size;
      again.pages.push_back(std::move(group.pages[n]));
    } else {
      outcomes.push_back({group.pages[n].tag, code});
    }
  }
  again.priority = group.priority;
  again.deadline_ns = group.deadline_ns;
  if (!again.pages.empty()) read_again(std::move(again));
  if (!outcomes.empty()) done_(std::move(outcomes));
}

void PageMover::read_again(Group group) {
  group.is_second = true;
  const std::lock_guard lock(mutex_);
  (group.priority == Priority::kUrgent ? urgent_ : background_).push_front(std::move(group));
}

void PageMover::report(const Group& group, Code code) {
  std::vector<Outcome> outcomes;
  for (const Page& page : group.pages) outcomes.push_back({page.tag, code});
  done_(std::move(outcomes));
}

}  // namespace hicache
