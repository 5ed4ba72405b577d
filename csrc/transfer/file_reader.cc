#include "transfer/file_reader.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <chrono>
#include <deque>
#include <thread>

#include "transfer/checksum_copy.h"

namespace hicache {
namespace {

// Buffers beyond the reads in flight: being copied from while the disk goes on.
constexpr uint32_t kSpareBuffers = 4;
constexpr size_t kHelpedCount = 2;  // Reads waiting to be copied for which a helper is woken.
// Threads that wait for a disk. Each copies and verifies about 10 GB/s, and others have use for
// them.
constexpr size_t kWaitersMax = 4;
// What lies between two stripes is read as well if it is small: a read of its own costs more.
constexpr uint64_t kGapMax = 4 * kSectorSize;
constexpr uint64_t kStopLookNs = 50'000'000;
constexpr size_t kCompletionsPerPoll = 32;
constexpr uint32_t kNone = UINT32_MAX;

}  // namespace

/// One read(): its threads share it under one lock. The device has one owner at a time. That is the
/// caller, who also copies, and asks again after each copy; the others help where several reads
/// have come. They run at a lower priority: what they wait for, everybody would wait for.
class FileReader::Call {
 public:
  Call(FileReader& reader, const Work& work, const ReadLimits& limits);

  void run(CopyThreads& threads);
  uint64_t silence_ns() const { return silence_ns_; }

 private:
  /// Of neighbouring stripes.
  struct Read {
    uint32_t file;
    uint64_t offset;
    uint64_t end;
    uint32_t first_stripe;
    uint32_t last_stripe;
  };
  struct File {
    std::vector<uint32_t> reads;
    size_t next = 0;  // In reads: not submitted yet.
    uint32_t in_flight = 0;
    uint64_t progress_ns = 0;  // Last completion, or the submission that ended idleness.
    bool given_up = false;

    size_t queued() const { return given_up ? 0 : reads.size() - next; }
  };

  void plan_reads();
  void work(bool may_wait);
  void advance();
  void complete(const IoCompletion& completion, uint64_t now_ns);
  void give_up_late(uint64_t now_ns);
  void give_up(File& file);
  void submit(uint64_t now_ns);
  File* next_file();
  Deadline wait_deadline() const;
  void hand_over(uint32_t buffer);
  FileHealth& health_of(const File& file) {
    return work_.files[static_cast<size_t>(&file - files_.data())]->health;
  }
  uint8_t* address_of(uint32_t buffer) const {
    return reader_.memory_.address() + buffer * reader_.options_.read_size;
  }

  FileReader& reader_;
  const Work& work_;
  const ReadLimits& limits_;
  const uint64_t begun_ns_ = monotonic_ns();
  std::vector<Read> reads_;
  std::vector<uint32_t> next_stripe_;  // Of the same read; kNone: the last.

  std::mutex mutex_;
  std::condition_variable changed_;      // What helpers wait for.
  std::condition_variable device_free_;  // What the caller waits for.
  std::vector<File> files_;
  std::vector<uint32_t> read_in_;  // By buffer.
  std::vector<uint32_t> free_;     // Buffers.
  std::deque<uint32_t> finished_;  // Buffers that wait to be copied.
  size_t pending_ = 0;             // Reads that are queued or in flight, of files not given up.
  size_t copying_ = 0;
  bool waiting_ = false;  // A thread waits for the device, and alone may use it.
  const std::thread::id caller_ = std::this_thread::get_id();
  bool caller_works_ = false;  // It leaves when nothing is pending.
  bool has_other_;
  uint64_t silence_ns_ = 0;
};

FileReader::Call::Call(FileReader& reader, const Work& work, const ReadLimits& limits)
    : reader_(reader),
      work_(work),
      limits_(limits),
      next_stripe_(work.stripes.size(), kNone),
      files_(work.files.size()),
      read_in_(reader.options_.depth + kSpareBuffers),
      has_other_(work.other != nullptr) {
  for (uint32_t buffer = 0; buffer < read_in_.size(); ++buffer) free_.push_back(buffer);
  plan_reads();
  for (File& file : files_) {
    pending_ += file.reads.size();
    if (!file.reads.empty() && !health_of(file).may_read(begun_ns_)) give_up(file);
  }
  if (pending_ != 0 && !reader_.prepare()) {
    for (File& file : files_) give_up(file);
  }
}

void FileReader::Call::plan_reads() {
  for (uint32_t i = 0; i < work_.stripes.size(); ++i) {
    const FileStripe& stripe = work_.stripes[i];
    assert(stripe.size != 0 && stripe.size <= kStripeSize && stripe.offset % kSectorSize == 0);
    const uint64_t end = stripe.offset + round_up(stripe.size, kSectorSize);
    std::vector<uint32_t>& of_file = files_[stripe.file].reads;
    if (!of_file.empty()) {
      Read& last = reads_[of_file.back()];
      if (stripe.offset >= last.offset && stripe.offset <= last.end + kGapMax &&
          end <= last.offset + reader_.options_.read_size) {
        next_stripe_[last.last_stripe] = i;
        last.last_stripe = i;
        last.end = std::max(last.end, end);
        continue;
      }
    }
    of_file.push_back(static_cast<uint32_t>(reads_.size()));
    reads_.push_back({stripe.file, stripe.offset, end, i, i});
  }
}

void FileReader::Call::run(CopyThreads& threads) {
  const size_t useful = std::max(std::min(reads_.size(), kWaitersMax), work_.other_count);
  {
    std::lock_guard lock(mutex_);
    advance();  // The files first: they take longest to answer.
  }
  threads.run(std::max<size_t>(1, std::min<size_t>(useful, threads.count())),
              [this](size_t number) { work(number < kWaitersMax); });
}

void FileReader::Call::work(bool may_wait) {
  std::unique_lock lock(mutex_);
  const bool is_caller = std::this_thread::get_id() == caller_;
  caller_works_ = caller_works_ || is_caller;
  for (;;) {
    if (!waiting_) advance();
    if (!finished_.empty()) {
      const uint32_t buffer = finished_.front();
      finished_.pop_front();
      ++copying_;
      // To wake a helper for one alone costs more than it brings.
      if (finished_.size() >= kHelpedCount) changed_.notify_one();
      lock.unlock();
      hand_over(buffer);
      lock.lock();
      --copying_;
      free_.push_back(buffer);
    } else if (has_other_) {
      lock.unlock();
      const bool did_some = work_.other();
      lock.lock();
      has_other_ = has_other_ && did_some;
    } else if (pending_ == 0 || (!may_wait && !is_caller)) {
      changed_.notify_all();
      device_free_.notify_all();
      return;
    } else if (is_caller && waiting_) {
      device_free_.wait(lock);
    } else if (!is_caller && (waiting_ || caller_works_)) {
      changed_.wait(lock);
    } else {
      waiting_ = true;
      const Deadline deadline = wait_deadline();
      lock.unlock();
      reader_.device_->wait(deadline);
      lock.lock();
      waiting_ = false;
      device_free_.notify_one();
    }
  }
}

/// Takes what the device has completed, and gives it more. Never blocks.
void FileReader::Call::advance() {
  if (pending_ == 0) return;
  std::array<IoCompletion, kCompletionsPerPoll> completions;
  const uint64_t now_ns = monotonic_ns();
  size_t count;
  do {
    count = reader_.device_->poll(completions);
    for (size_t i = 0; i < count; ++i) complete(completions[i], now_ns);
  } while (count == completions.size());
  submit(now_ns);
  give_up_late(now_ns);
}

void FileReader::Call::complete(const IoCompletion& completion, uint64_t now_ns) {
  const auto buffer = static_cast<uint32_t>(completion.tag);
  File& file = files_[reads_[read_in_[buffer]].file];
  --file.in_flight;
  file.progress_ns = now_ns;
  if (file.given_up) {
    free_.push_back(buffer);
    return;
  }
  --pending_;
  FileHealth& health = health_of(file);
  if (completion.error == 0) {
    health.note_success();
    finished_.push_back(buffer);
    return;
  }
  free_.push_back(buffer);
  health.note_failure(now_ns);
  if (health.is_paused(now_ns)) give_up(file);
}

void FileReader::Call::give_up_late(uint64_t now_ns) {
  // A stopped process, or other work, may have taken all of the time: what has come was taken
  // first.
  bool live_in_flight = false;
  for (File& file : files_) {
    if (file.given_up || file.in_flight == 0) continue;
    const uint64_t silent_ns = now_ns - file.progress_ns;
    if (silent_ns < limits_.silence_ns) {
      live_in_flight = true;
      continue;
    }
    health_of(file).note_silence(now_ns, silent_ns);
    silence_ns_ = std::max(silence_ns_, silent_ns);
    give_up(file);
  }
  // Buffers that hang in other files would never come back.
  const bool is_starved = !live_in_flight && copying_ == 0 && finished_.empty();
  if (is_starved || now_ns - begun_ns_ >= limits_.total_ns ||
      (work_.is_stopped && work_.is_stopped())) {
    for (File& file : files_) give_up(file);
  }
}

void FileReader::Call::give_up(File& file) {
  if (file.given_up) return;
  pending_ -= file.queued() + file.in_flight;
  file.given_up = true;
}

/// The one with the fewest in flight: a slow file must not take the buffers of the others.
FileReader::Call::File* FileReader::Call::next_file() {
  File* found = nullptr;
  for (File& file : files_) {
    if (file.queued() != 0 && (found == nullptr || file.in_flight < found->in_flight)) {
      found = &file;
    }
  }
  return found;
}

void FileReader::Call::submit(uint64_t now_ns) {
  while (!free_.empty() && reader_.device_->in_flight() < reader_.options_.depth) {
    File* file = next_file();
    if (file == nullptr) return;
    const uint32_t number = file->reads[file->next];
    const Read& read = reads_[number];
    const uint32_t buffer = free_.back();
    const uint64_t size = read.end - read.offset;
    IoRequest request{.kind = IoKind::kRead,
                      .fd = work_.files[read.file]->fd.get(),
                      .offset = read.offset,
                      .size = size,
                      .parts = {{address_of(buffer), size}},
                      .tag = buffer};
    if (!reader_.device_->submit(std::move(request))) return;
    free_.pop_back();
    read_in_[buffer] = number;
    ++file->next;
    if (file->in_flight++ == 0) file->progress_ns = now_ns;
  }
}

Deadline FileReader::Call::wait_deadline() const {
  const uint64_t now_ns = monotonic_ns();
  uint64_t until_ns = begun_ns_ + limits_.total_ns;
  for (const File& file : files_) {
    if (file.given_up || file.in_flight == 0) continue;
    until_ns = std::min(until_ns, file.progress_ns + limits_.silence_ns);
  }
  if (work_.is_stopped) until_ns = std::min(until_ns, now_ns + kStopLookNs);
  return Deadline::after_ms(0).later_by_ns(until_ns > now_ns ? until_ns - now_ns : 0);
}

void FileReader::Call::hand_over(uint32_t buffer) {
  const Read& read = reads_[read_in_[buffer]];
  for (uint32_t i = read.first_stripe; i != kNone; i = next_stripe_[i]) {
    work_.take(i, address_of(buffer) + (work_.stripes[i].offset - read.offset));
  }
}

// ---------------------------------------------------------------- the reader

FileReader::FileReader(Options options, MakeDevice make_device)
    : options_(options), make_device_(std::move(make_device)) {
  assert(options_.depth != 0 && options_.read_size >= kStripeSize &&
         options_.read_size % kSectorSize == 0);
}

bool FileReader::prepare() {
  if (device_) return true;
  const uint64_t size = (options_.depth + kSpareBuffers) * options_.read_size;
  memory_ = MappedMemory::make(size);
  if (!memory_.valid()) return false;
  madvise(memory_.address(), size, MADV_HUGEPAGE);  // Advice.
  auto made = make_device_({options_.engine, options_.depth, memory_.span()});
  if (made.ok()) device_ = std::move(made.value());
  return device_ != nullptr;
}

uint64_t FileReader::read(const Work& work, const ReadLimits& limits, CopyThreads& threads) {
  Call call(*this, work, limits);
  call.run(threads);
  if (device_ && device_->in_flight() != 0) {
    device_.reset();
    memory_.abandon();
  }
  return call.silence_ns();
}

// ---------------------------------------------------------------- several readers

std::unique_ptr<FileReader> FileReaders::take(Deadline deadline) {
  std::unique_lock lock(mutex_);
  if (!returned_.wait_for(lock, std::chrono::nanoseconds(deadline.remaining_ns()),
                          [this] { return lent_ < kCountMax; })) {
    return nullptr;
  }
  ++lent_;
  if (idle_.empty()) return std::make_unique<FileReader>(options_);
  std::unique_ptr<FileReader> reader = std::move(idle_.back());
  idle_.pop_back();
  return reader;
}

void FileReaders::give_back(std::unique_ptr<FileReader> reader) {
  {
    std::lock_guard lock(mutex_);
    --lent_;
    idle_.push_back(std::move(reader));
  }
  returned_.notify_one();
}

}  // namespace hicache
