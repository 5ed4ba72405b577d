// A CUDA driver whose GPUs are memory that the CPU cannot touch.
//
// The address of device memory is a mapping without any permission: whoever touches it directly
// crashes. The fake's copies go through another mapping of the same file. They run on a thread of
// the fake, some time after copy_async(), in the order of their stream, and of streams in random
// order; they can be held back, and fail. A copy of memory that was never pinned is counted: the
// real driver would not do it asynchronously.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "io/fd.h"
#include "io/gpu.h"
#include "support.h"

namespace hicache::testing {

class FakeGpu : public GpuDriver {
 public:
  static constexpr int kFailure = 719;  // CUDA_ERROR_LAUNCH_FAILED
  enum class Way : uint8_t { kToDevice, kFromDevice, kBetween };

  FakeGpu() : worker_([this] { work(); }) { GpuDriver::stand_in(this); }
  ~FakeGpu() override {
    GpuDriver::stand_in(nullptr);
    {
      const std::lock_guard lock(mutex_);
      is_ending_ = true;
    }
    changed_.notify_all();
    worker_.join();
    for (const auto& [address, range] : ranges_) drop(address, range);
  }

  // ---- What tests do

  /// Device memory: its address, which the CPU must not touch.
  uint64_t allocate(uint64_t size, int device = 0) {
    Range range{size, PointerFacts::Kind::kDevice, device, nullptr};
    const Fd file(memfd_create("fake-gpu", MFD_CLOEXEC));
    EXPECT_EQ(ftruncate(file.get(), static_cast<off_t>(size)), 0);
    void* forbidden = mmap(nullptr, size, PROT_NONE, MAP_SHARED, file.get(), 0);
    void* inside = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
    EXPECT_TRUE(forbidden != MAP_FAILED && inside != MAP_FAILED);
    range.inside = static_cast<uint8_t*>(inside);
    range.file = std::make_shared<Fd>(dup(file.get()));
    const auto address = reinterpret_cast<uint64_t>(forbidden);
    const std::lock_guard lock(mutex_);
    ranges_.emplace(address, range);
    return address;
  }
  /// A copy that touches it from now on crashes.
  void free(uint64_t address) {
    const std::lock_guard lock(mutex_);
    const auto found = ranges_.find(address);
    drop(address, found->second);
    ranges_.erase(found);
  }
  void pin(const void* address, uint64_t size) {
    const std::lock_guard lock(mutex_);
    ranges_.emplace(reinterpret_cast<uint64_t>(address),
                    Range{size, PointerFacts::Kind::kPinned, 0, nullptr});
  }
  std::vector<uint8_t> bytes_at(uint64_t address, uint64_t size) const {
    const std::lock_guard lock(mutex_);
    const uint8_t* first = reach(address);
    return {first, first + size};
  }
  void put(uint64_t address, std::span<const uint8_t> bytes) {
    const std::lock_guard lock(mutex_);
    std::memcpy(reach(address), bytes.data(), bytes.size());
  }

  /// No copy of that kind ends until let_go().
  void hold(Way way) { set(held_, way, true); }
  void let_go() {
    const std::lock_guard lock(mutex_);
    for (bool& held : held_) held = false;
    changed_.notify_all();
  }
  /// The n-th copy of that kind from now on fails, 0 being the next.
  void fail_copy(Way way, int n = 0) { set(fail_in_, way, n + 1); }
  /// Memory of devices can be exported.
  void set_has_dmabuf(bool has) { has_dmabuf_ = has; }
  /// No pinned memory is to be had.
  void set_no_pinned_memory(bool is_none) { no_pinned_memory_ = is_none; }

  /// Whether that many copies of a kind have begun and are held back.
  bool wait_held(Way way, size_t count) const {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), [&] {
      size_t held = 0;
      for (const auto& stream : streams_) {
        for (const Task& task : stream->tasks) held += task.is_copy() && task.way == way;
      }
      return held >= count;
    });
  }
  size_t copies(Way way) const {
    const std::lock_guard lock(mutex_);
    return copies_[static_cast<size_t>(way)];
  }
  size_t pageable_copies() const { return pageable_copies_; }
  /// Ranges that host_register() pinned.
  size_t pinned_units() const {
    const std::lock_guard lock(mutex_);
    size_t count = 0;
    for (const auto& [address, range] : ranges_) count += range.is_registered;
    return count;
  }
  size_t pinned_bytes() const {
    const std::lock_guard lock(mutex_);
    size_t size = 0;
    for (const auto& [address, range] : ranges_) size += range.is_allocated ? range.size : 0;
    return size;
  }
  /// Streams, events and contexts that were not given back.
  size_t left_over() const {
    const std::lock_guard lock(mutex_);
    return streams_.size() + events_ + contexts_;
  }

  // ---- The driver

  int pointer_facts(uint64_t address, PointerFacts* facts) const override {
    const std::lock_guard lock(mutex_);
    *facts = PointerFacts{};
    if (const Range* range = find(address)) *facts = {range->kind, range->device};
    return 0;
  }
  int context_retain(int device, GpuContext* context) const override {
    const std::lock_guard lock(mutex_);
    ++contexts_;
    *context = reinterpret_cast<GpuContext>(static_cast<uintptr_t>(device) + 1);
    return 0;
  }
  int context_release(int) const override {
    const std::lock_guard lock(mutex_);
    --contexts_;
    return 0;
  }
  int context_push(GpuContext context) const override {
    stack().push_back(context);
    return 0;
  }
  int context_pop() const override {
    EXPECT_FALSE(stack().empty());
    stack().pop_back();
    return 0;
  }
  int stream_create(GpuStream* stream) const override {
    EXPECT_FALSE(stack().empty());
    const std::lock_guard lock(mutex_);
    streams_.push_back(std::make_unique<Stream>());
    *stream = streams_.back().get();
    return 0;
  }
  int stream_destroy(GpuStream stream) const override {
    const std::lock_guard lock(mutex_);
    std::erase_if(streams_, [&](const auto& one) { return one.get() == stream; });
    return 0;
  }
  int stream_wait(GpuStream stream) const override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return static_cast<Stream*>(stream)->tasks.empty(); });
    return 0;
  }
  int event_create(GpuEvent* event) const override {
    EXPECT_FALSE(stack().empty());
    const std::lock_guard lock(mutex_);
    ++events_;
    auto created = std::make_shared<Event>();
    *event = created.get();
    living_events_.push_back(std::move(created));
    return 0;
  }
  int event_destroy(GpuEvent event) const override {
    // What was queued with it goes on.
    const std::lock_guard lock(mutex_);
    std::erase_if(living_events_, [&](const auto& one) { return one.get() == event; });
    --events_;
    return 0;
  }
  int event_record(GpuEvent event, GpuStream stream) const override {
    const std::lock_guard lock(mutex_);
    const std::shared_ptr<Event> recorded = event_of(event);
    recorded->is_done = false;
    auto& tasks = static_cast<Stream*>(stream)->tasks;
    tasks.push_back({0, 0, 0, Way::kBetween, recorded, nullptr});
    changed_.notify_all();
    return 0;
  }
  int event_wait(GpuEvent event) const override {
    std::unique_lock lock(mutex_);
    const auto* awaited = static_cast<const Event*>(event);
    changed_.wait(lock, [&] { return awaited->is_done; });
    return awaited->error;
  }
  int copy_async(uint64_t target, uint64_t source, size_t size, GpuStream stream) const override {
    EXPECT_FALSE(stack().empty());
    const std::lock_guard lock(mutex_);
    const Range* to = find(target);
    const Range* from = find(source);
    if (to == nullptr || from == nullptr) ++pageable_copies_;
    const auto is_device = [](const Range* range) {
      return range != nullptr && range->kind == PointerFacts::Kind::kDevice;
    };
    const Way way = !is_device(to)    ? Way::kFromDevice
                    : is_device(from) ? Way::kBetween
                                      : Way::kToDevice;
    static_cast<Stream*>(stream)->tasks.push_back({target, source, size, way, nullptr, nullptr});
    changed_.notify_all();
    return 0;
  }
  int copy_all_async(std::span<const GpuCopy> copies, GpuStream stream) const override {
    for (const GpuCopy& copy : copies) {
      for (const uint64_t address : {copy.target, copy.source}) {
        // The driver refuses what is not wholly inside one range that it knows.
        const std::lock_guard lock(mutex_);
        const Range* range = find(address);
        EXPECT_TRUE(range != nullptr && find(address + copy.size - 1) == range);
      }
      EXPECT_EQ(copy_async(copy.target, copy.source, copy.size, stream), 0);
    }
    return 0;
  }
  int stream_wait_event(GpuStream stream, GpuEvent event) const override {
    const std::lock_guard lock(mutex_);
    static_cast<Stream*>(stream)->tasks.push_back(
        {0, 0, 0, Way::kBetween, nullptr, event_of(event)});
    changed_.notify_all();
    return 0;
  }
  int host_register(void* address, size_t size) const override {
    if (no_pinned_memory_) return 2;  // CUDA_ERROR_OUT_OF_MEMORY
    const std::lock_guard lock(mutex_);
    Range range{size, PointerFacts::Kind::kPinned, 0, nullptr};
    range.is_registered = true;
    const bool is_new = ranges_.emplace(reinterpret_cast<uint64_t>(address), range).second;
    return is_new ? 0 : 712;  // CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED
  }
  int host_unregister(void* address) const override {
    const std::lock_guard lock(mutex_);
    return ranges_.erase(reinterpret_cast<uint64_t>(address)) == 1 ? 0 : 713;
  }
  int export_dmabuf(uint64_t address, size_t size, int* dmabuf) const override {
    EXPECT_FALSE(stack().empty());
    const std::lock_guard lock(mutex_);
    const auto found = ranges_.find(address);  // A memfd has no offset of its own.
    const bool is_whole = found != ranges_.end() && found->second.file != nullptr &&
                          size <= round_up(found->second.size, 4 * kKiB);
    if (!has_dmabuf_ || !is_whole) return 801;  // CUDA_ERROR_NOT_SUPPORTED
    *dmabuf = dup(found->second.file->get());
    return 0;
  }
  int host_alloc(void** address, size_t size) const override {
    if (no_pinned_memory_) return 2;  // CUDA_ERROR_OUT_OF_MEMORY
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(memory, MAP_FAILED);
    const std::lock_guard lock(mutex_);
    Range range{size, PointerFacts::Kind::kPinned, 0, nullptr};
    range.is_allocated = true;
    ranges_.emplace(reinterpret_cast<uint64_t>(memory), range);
    *address = memory;
    return 0;
  }
  int host_free(void* address) const override {
    const std::lock_guard lock(mutex_);
    const auto found = ranges_.find(reinterpret_cast<uint64_t>(address));
    munmap(address, found->second.size);
    ranges_.erase(found);
    return 0;
  }
  std::string error_name(int error) const override { return "FAKE_" + std::to_string(error); }

 private:
  struct Range {
    uint64_t size;
    PointerFacts::Kind kind;
    int device;
    uint8_t* inside;  // Of device memory.
    bool is_allocated = false;
    bool is_registered = false;
    std::shared_ptr<Fd> file{};  // Of device memory.
  };
  struct Event {
    bool is_done = false;
    int error = 0;
  };
  struct Task {
    uint64_t target;
    uint64_t source;
    uint64_t size;
    Way way;
    std::shared_ptr<Event> event;    // That is recorded; null: a copy, or
    std::shared_ptr<Event> awaited;  // the stream waits for that one.
    bool is_copy() const { return event == nullptr && awaited == nullptr; }
  };
  struct Stream {
    std::deque<Task> tasks;
    int error = 0;  // Of a copy since the last event.
  };

  std::shared_ptr<Event> event_of(GpuEvent event) const {
    for (const auto& one : living_events_) {
      if (one.get() == event) return one;
    }
    ADD_FAILURE() << "an event that is not, or no more";
    return std::make_shared<Event>();
  }
  static std::vector<GpuContext>& stack() {
    thread_local std::vector<GpuContext> contexts;
    return contexts;
  }
  static void drop(uint64_t address, const Range& range) {
    if (range.inside == nullptr) return;
    munmap(reinterpret_cast<void*>(address), range.size);
    munmap(range.inside, range.size);
  }
  const Range* find(uint64_t address) const {
    const auto after = ranges_.upper_bound(address);
    if (after == ranges_.begin()) return nullptr;
    const auto& [begin, range] = *std::prev(after);
    return address - begin < range.size ? &range : nullptr;
  }
  uint8_t* reach(uint64_t address) const {
    const auto after = ranges_.upper_bound(address);
    if (after != ranges_.begin()) {
      const auto& [begin, range] = *std::prev(after);
      if (address - begin < range.size && range.inside != nullptr) {
        return range.inside + (address - begin);
      }
    }
    return reinterpret_cast<uint8_t*>(address);
  }
  template <typename Values, typename Value>
  void set(Values& values, Way way, Value value) {
    const std::lock_guard lock(mutex_);
    values[static_cast<size_t>(way)] = value;
  }

  Stream* next_stream() {
    std::vector<Stream*> able;
    for (const auto& stream : streams_) {
      if (stream->tasks.empty()) continue;
      const Task& task = stream->tasks.front();
      const bool is_able = task.is_copy() ? !held_[static_cast<size_t>(task.way)]
                                          : task.awaited == nullptr || task.awaited->is_done;
      if (is_able) able.push_back(stream.get());
    }
    return able.empty() ? nullptr : random_.pick(able);
  }
  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      Stream* stream = next_stream();
      if (stream == nullptr) {
        if (is_ending_) return;
        changed_.wait(lock);
        continue;
      }
      const Task task = stream->tasks.front();
      if (task.event != nullptr) {
        task.event->error = std::exchange(stream->error, 0);
        task.event->is_done = true;
      } else if (task.is_copy()) {
        const auto way = static_cast<size_t>(task.way);
        ++copies_[way];
        if (fail_in_[way] > 0 && --fail_in_[way] == 0) {
          stream->error = kFailure;
        } else {
          std::memcpy(reach(task.target), reach(task.source), task.size);
        }
      }
      stream->tasks.pop_front();
      changed_.notify_all();
    }
  }

  mutable std::mutex mutex_;  // Of what follows.
  mutable std::condition_variable changed_;
  mutable std::map<uint64_t, Range> ranges_;
  mutable std::vector<std::unique_ptr<Stream>> streams_;
  mutable std::vector<std::shared_ptr<Event>> living_events_;
  mutable size_t events_ = 0;
  mutable size_t contexts_ = 0;
  mutable std::atomic<size_t> pageable_copies_{0};
  std::atomic<bool> no_pinned_memory_{false};
  std::atomic<bool> has_dmabuf_{false};
  bool held_[3] = {};
  int fail_in_[3] = {};
  size_t copies_[3] = {};
  bool is_ending_ = false;
  Random random_{77};
  std::thread worker_;
};

}  // namespace hicache::testing
