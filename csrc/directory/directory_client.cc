#include "directory/directory_client.h"

#include <poll.h>
#include <pthread.h>

#include <algorithm>
#include <chrono>

#include "net/secure_channel.h"

namespace hicache {
namespace {

/// Requests that wait for the socket. More are kBusy.
constexpr size_t kUnsentMax = 8 * kMiB;

}  // namespace

Result<std::unique_ptr<DirectoryClient>> DirectoryClient::start(Options options) {
  if (options.addresses.empty()) {
    return Status(Code::kInvalidArgument, "the directory has no address; give `master`");
  }
  EventFd wake = EventFd::make();
  if (!wake.valid()) return io_error("starting the directory's client", errno);
  std::unique_ptr<DirectoryClient> client(new DirectoryClient(std::move(options), std::move(wake)));
  client->thread_ = std::thread([raw = client.get()] { raw->run(); });
  pthread_setname_np(client->thread_.native_handle(), "mh-dir-client");
  return client;
}

DirectoryClient::DirectoryClient(Options options, EventFd wake)
    : options_(std::move(options)), wake_(std::move(wake)) {}

DirectoryClient::~DirectoryClient() {
  stop();
}

void DirectoryClient::stop() {
  stopping_ = true;
  wake_.signal();
  if (thread_.joinable()) thread_.join();
}

Status DirectoryClient::wait_connected(Deadline deadline, uint64_t but) {
  std::unique_lock lock(mutex_);
  const auto is_there = [&] { return connection_number_ != 0 && connection_number_ != but; };
  (void)connected_.wait_for(lock, std::chrono::nanoseconds(deadline.remaining_ns()),
                            [&] { return is_there() || stopping_; });
  if (is_there()) return Status();
  return stopping_ ? state_ : Status(Code::kTimeout, state_.message());
}

// ---------------------------------------------------------------- calls

void DirectoryClient::submit(DirectoryOp op, std::vector<uint8_t> frame, Deadline deadline,
                             AnswerDone done) {
  Status refused;
  {
    const std::lock_guard lock(mutex_);
    if (connection_number_ == 0) {
      refused = state_;
    } else if (calls_.size() >= options_.calls_max || unsent_.size() >= kUnsentMax) {
      refused = Status(Code::kBusy, "too many questions to the directory are under way");
    } else {
      const uint64_t id = next_id_++;
      const uint64_t deadline_ns = monotonic_ns() + deadline.remaining_ns();
      seal_frame(frame, static_cast<uint16_t>(op), id);
      // The thread sends all that is there, and looks at their deadlines after that; while the
      // socket takes nothing it waits for the first of these.
      const bool is_first =
          unsent_.empty() || deadlines_.empty() || deadline_ns < deadlines_.begin()->first;
      unsent_.insert(unsent_.end(), frame.begin(), frame.end());
      deadlines_.emplace(deadline_ns, id);
      calls_.emplace(id, Call{op, deadline_ns, std::move(done)});
      if (is_first) wake_.signal();
      return;
    }
  }
  done(refused);
}

void DirectoryClient::cut(uint64_t connection) {
  uint64_t cut = cut_;
  while (connection > cut && !cut_.compare_exchange_weak(cut, connection)) {
  }
  wake_.signal();
}

/// Ends calls that are late. Returns when the next one will be, in ms; -1: there is none.
int DirectoryClient::expire_calls() {
  const uint64_t now_ns = monotonic_ns();
  std::vector<Call> late;
  int next_ms = -1;
  {
    const std::lock_guard lock(mutex_);
    while (!deadlines_.empty() && deadlines_.begin()->first <= now_ns) {
      const auto call = calls_.find(deadlines_.begin()->second);
      late.push_back(std::move(call->second));
      calls_.erase(call);
      deadlines_.erase(deadlines_.begin());
    }
    if (!deadlines_.empty()) {
      const uint64_t left_ns = deadlines_.begin()->first - now_ns;
      next_ms = static_cast<int>(std::min<uint64_t>(left_ns / 1'000'000 + 1, 60'000));
    }
  }
  for (const Call& call : late) {
    call.done(Status(Code::kTimeout,
                     "the directory did not answer " + std::string(op_name(call.op)) + " in time"));
  }
  return next_ms;
}

void DirectoryClient::fail_calls(const Status& status) {
  std::unordered_map<uint64_t, Call> calls;
  {
    const std::lock_guard lock(mutex_);
    calls.swap(calls_);
    deadlines_.clear();
    unsent_.clear();
    connection_number_ = 0;
    state_ = status;
  }
  for (const auto& [id, call] : calls) call.done(status);
  if (options_.on_connection) options_.on_connection();
}

// ---------------------------------------------------------------- the thread

void DirectoryClient::run() {
  uint64_t back_off_ms = options_.back_off_min_ms;
  while (!stopping_) {
    for (const HostPort& address : options_.addresses) {
      if (stopping_) break;
      Result<Stream> stream = connect(address);
      Status ended = stream.status();
      if (stream.ok()) {
        const uint64_t known = epoch();
        ended = serve(FramePipe(std::move(stream.value()), kDirectoryReplySizeMax));
        // It led, so the next one is worth a quick try. Of another version it stays.
        const bool led = ended.code() != Code::kNotLeader && ended.code() != Code::kUnsupported;
        if (epoch() > known || led) {
          back_off_ms = options_.back_off_min_ms;
        }
      }
      const std::string why = "the directory at " + to_string(address) + ": " + ended.message();
      fail_calls(Status(ended.code(), why));
      const bool is_news = ended.code() != Code::kNotLeader && !stopping_;
      if (is_news && options_.on_trouble) options_.on_trouble(why);
    }
    pause(back_off_ms);
    back_off_ms = std::min(back_off_ms * 2, options_.back_off_max_ms);
  }
  fail_calls(Status(Code::kClosed, "the directory's client was stopped"));
  connected_.notify_all();
}

void DirectoryClient::pause(uint64_t ms) {
  for (const Deadline deadline = Deadline::after_ms(ms); !stopping_ && !deadline.expired();) {
    wake_.wait(deadline);
    wake_.clear();
  }
}

Result<Stream> DirectoryClient::connect(const HostPort& address) const {
  const Deadline deadline = Deadline::after_ms(options_.connect_timeout_ms);
  Result<Fd> socket = tcp_connect(address, deadline);
  if (!socket.ok()) return socket.status();
  HICACHE_RETURN_IF_ERROR(tune(socket.value()));
  Stream stream(std::move(socket.value()), Stream::End::kClient, options_.tls);
  const Result<uint64_t> greeted =
      greet_server(stream, options_.secret, {Purpose::kDirectory, 0}, deadline);
  if (!greeted.ok()) return greeted.status();
  return stream;
}

Status DirectoryClient::serve(FramePipe pipe) {
  const uint64_t connection = ++last_connection_;
  {
    const std::lock_guard lock(mutex_);
    connection_number_ = connection;
  }
  connected_.notify_all();
  if (options_.on_connection) options_.on_connection();
  while (true) {
    HICACHE_RETURN_IF_ERROR(exchange(pipe, connection));
    const int wait_ms = expire_calls();  // Of all that were sent; who comes later wakes the poll.
    const auto wanted = static_cast<short>(POLLIN | (pipe.unsent_size() != 0 ? POLLOUT : 0));
    pollfd waited[2] = {{pipe.fd(), wanted, 0}, {wake_.get(), POLLIN, 0}};
    (void)poll(waited, 2, wait_ms);
    if (waited[1].revents != 0) wake_.clear();
    if (stopping_) return Status(Code::kClosed, "the directory's client was stopped");
    if (cut_ >= connection) return Status(Code::kNotLeader, "it does not lead the cluster");
  }
}

/// Sends what is to be sent, and takes what is there.
Status DirectoryClient::exchange(FramePipe& pipe, uint64_t connection) {
  do {
    if (pipe.unsent_size() == 0) {
      const std::lock_guard lock(mutex_);
      if (unsent_.empty()) break;
      pipe.append(unsent_);
      unsent_.clear();
    }
    const Result<size_t> sent = pipe.flush();
    if (!sent.ok()) return sent.status();
  } while (pipe.unsent_size() == 0);
  while (true) {
    const Result<size_t> got = pipe.receive();
    if (!got.ok()) return got.status();
    if (got.value() == 0) return Status();
    while (true) {
      const Result<FramePipe::Frame> frame = pipe.next();
      if (!frame.ok()) return frame.status();
      if (!frame.value().is_whole) break;
      HICACHE_RETURN_IF_ERROR(take(frame.value(), connection));
    }
  }
}

Status DirectoryClient::take(const FramePipe::Frame& frame, uint64_t connection) {
  const uint16_t op = frame.header.op & static_cast<uint16_t>(~kDirectoryReplyBit);
  if (frame.header.request_id == 0) {
    Result<HeartbeatReply> orders =
        decode_answer<HeartbeatReply>(Answer{frame.payload, connection});
    if (orders.ok() && options_.on_orders) options_.on_orders(orders.value());
    return orders.status();
  }
  Call call;
  {
    const std::lock_guard lock(mutex_);
    const auto found = calls_.find(frame.header.request_id);
    if (found == calls_.end()) return Status();  // It was late.
    if (op != static_cast<uint16_t>(found->second.op)) {
      return Status(Code::kCorrupt, "the directory answered another question than was asked");
    }
    call = std::move(found->second);
    calls_.erase(found);
    deadlines_.erase({call.deadline_ns, frame.header.request_id});
  }
  call.done(Answer{frame.payload, connection});
  return Status();
}

}  // namespace hicache
