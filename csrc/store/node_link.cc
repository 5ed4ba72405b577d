#include "store/node_link.h"

#include <poll.h>
#include <pthread.h>

#include <algorithm>

#include "net/secure_channel.h"

namespace hicache {
namespace {

/// Requests that wait for the socket. More are kBusy.
constexpr size_t kUnsentMax = 4 * kMiB;
constexpr uint64_t kMs = 1'000'000;
/// A connection over which nothing was asked for so long is given up: it may keep the peer from
/// being idle.
constexpr int kIdleMs = 60'000;

}  // namespace

Result<std::unique_ptr<NodeLink>> NodeLink::start(Options options) {
  EventFd wake = EventFd::make();
  if (!wake.valid()) return io_error("starting a link to a node", errno);
  std::unique_ptr<NodeLink> link(new NodeLink(std::move(options), std::move(wake)));
  link->thread_ = std::thread([raw = link.get()] { raw->run(); });
  pthread_setname_np(link->thread_.native_handle(), "mh-peer-link");
  return link;
}

NodeLink::NodeLink(Options options, EventFd wake)
    : options_(std::move(options)),
      wake_(std::move(wake)),
      back_off_ms_(options_.back_off_min_ms) {}

NodeLink::~NodeLink() {
  stop_soon();
  if (thread_.joinable()) thread_.join();
}

void NodeLink::stop_soon() {
  stopping_ = true;
  wake_.signal();
}

// ---------------------------------------------------------------- calls

void NodeLink::ask(NodeOp op, std::vector<uint8_t> message, Done done) {
  Status refused;
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) {
      refused = Status(Code::kClosed, "the link was stopped");
    } else if (is_failing()) {
      refused = Status(Code::kUnavailable,
                       "the node at " + to_string(options_.address) + " is left alone for a while");
    } else if (calls_.size() >= options_.calls_max || unsent_.size() >= kUnsentMax) {
      refused = Status(Code::kBusy, "too many questions to " + to_string(options_.address));
    } else {
      const uint64_t id = next_id_++;
      const uint64_t deadline_ns = monotonic_ns() + options_.call_timeout_ms * kMs;
      seal_frame(message, static_cast<uint16_t>(op), id);
      unsent_.insert(unsent_.end(), message.begin(), message.end());
      deadlines_.emplace(deadline_ns, id);
      calls_.emplace(id, Call{op, deadline_ns, std::move(done)});
    }
  }
  if (!refused.ok()) return done(refused);
  wake_.signal();
}

void NodeLink::tell(NodeOp op, std::vector<uint8_t> message) {
  {
    const std::lock_guard lock(mutex_);
    if (!is_connected_ || unsent_.size() >= kUnsentMax) return;
    seal_frame(message, static_cast<uint16_t>(op), next_id_++);
    unsent_.insert(unsent_.end(), message.begin(), message.end());
  }
  wake_.signal();
}

Result<int> NodeLink::next_late_ms() const {
  const std::lock_guard lock(mutex_);
  if (deadlines_.empty()) return -1;  // None is under way.
  const uint64_t now_ns = monotonic_ns();
  if (deadlines_.begin()->first <= now_ns) {
    return Status(Code::kTimeout,
                  "the node at " + to_string(options_.address) + " did not answer in time");
  }
  return static_cast<int>(
      std::min<uint64_t>((deadlines_.begin()->first - now_ns) / kMs + 1, 60'000));
}

/// False: something was asked just now.
bool NodeLink::give_up_idle() {
  const std::lock_guard lock(mutex_);
  if (!unsent_.empty() || !calls_.empty()) return false;
  is_connected_ = false;
  return true;
}

void NodeLink::fail_calls(const Status& status) {
  std::unordered_map<uint64_t, Call> calls;
  {
    const std::lock_guard lock(mutex_);
    calls.swap(calls_);
    deadlines_.clear();
    unsent_.clear();
    is_connected_ = false;
  }
  for (const auto& [id, call] : calls) call.done(status);
}

void NodeLink::open_breaker() {
  closed_until_ns_ = monotonic_ns() + back_off_ms_ * kMs;
  back_off_ms_ = std::min(back_off_ms_ * 2, options_.back_off_max_ms);
  ++breaks_count_;
}

// ---------------------------------------------------------------- the thread

void NodeLink::run() {
  while (!stopping_) {
    bool is_asked = false;
    {
      const std::lock_guard lock(mutex_);
      is_asked = !unsent_.empty();
    }
    if (!is_asked) {
      pollfd waited{wake_.get(), POLLIN, 0};
      (void)poll(&waited, 1, -1);
      wake_.clear();
      continue;
    }
    const Status ended = serve();
    if (ended.ok()) continue;
    // Before the calls fail: who tries again at once is to hear that there is no use.
    if (!stopping_) open_breaker();
    if (ended.code() == Code::kUnsupported && options_.on_other_version) {
      options_.on_other_version("the node at " + to_string(options_.address) +
                                " cannot be read from: " + ended.message());
    }
    fail_calls(ended);
  }
  fail_calls(Status(Code::kClosed, "the link was stopped"));
  has_ended_ = true;
}

Result<Stream> NodeLink::connect() const {
  const Deadline deadline = Deadline::after_ms(options_.connect_timeout_ms);
  Result<Fd> socket = tcp_connect(options_.address, deadline);
  if (!socket.ok()) return socket.status();
  HICACHE_RETURN_IF_ERROR(tune(socket.value()));
  Stream stream(std::move(socket.value()), Stream::End::kClient, options_.tls);
  const Result<uint64_t> greeted =
      greet_server(stream, options_.secret, {Purpose::kNode, options_.incarnation}, deadline);
  if (!greeted.ok()) return greeted.status();
  return stream;
}

Status NodeLink::serve() {
  peer_.reset();
  Result<Stream> stream = connect();
  if (!stream.ok()) return stream.status();
  FramePipe pipe(std::move(stream.value()), kPeerReplySizeMax);
  std::vector<uint8_t> hello;
  begin_frame(hello);
  WireWriter writer(hello);
  encode(writer, PeerHello{options_.own_name});
  seal_frame(hello, static_cast<uint16_t>(NodeOp::kHello), 0);
  pipe.append(hello);
  {
    const std::lock_guard lock(mutex_);
    is_connected_ = true;
  }
  while (true) {
    HICACHE_RETURN_IF_ERROR(exchange(pipe));
    const Result<int> wait_ms = next_late_ms();
    if (!wait_ms.ok()) return wait_ms.status();
    const auto wanted = static_cast<short>(POLLIN | (pipe.unsent_size() != 0 ? POLLOUT : 0));
    pollfd waited[2] = {{pipe.fd(), wanted, 0}, {wake_.get(), POLLIN, 0}};
    const int ready = poll(waited, 2, wait_ms.value() < 0 ? kIdleMs : wait_ms.value());
    if (ready == 0 && wait_ms.value() < 0 && give_up_idle()) return Status();
    if (waited[1].revents != 0) wake_.clear();
    if (stopping_) return Status(Code::kClosed, "the link was stopped");
  }
}

/// Sends what is to be sent, and takes what is there.
Status NodeLink::exchange(FramePipe& pipe) {
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
      HICACHE_RETURN_IF_ERROR(take(frame.value()));
    }
  }
}

Status NodeLink::take(const FramePipe::Frame& frame) {
  const Status malformed(Code::kCorrupt, "the node at " + to_string(options_.address) +
                                             " answered another question than was asked");
  const auto op = static_cast<NodeOp>(frame.header.op & static_cast<uint16_t>(~kReplyBit));
  if (!peer_) {
    PeerHelloReply hello;
    if (op != NodeOp::kHello || !decode(WireReader(frame.payload), hello) ||
        hello.incarnation != options_.incarnation) {
      return malformed;
    }
    peer_ = std::make_shared<const PeerHelloReply>(std::move(hello));
    return Status();
  }
  Call call;
  {
    const std::lock_guard lock(mutex_);
    const auto found = calls_.find(frame.header.request_id);
    if (found == calls_.end() || op != found->second.op) return malformed;
    call = std::move(found->second);
    calls_.erase(found);
    deadlines_.erase({call.deadline_ns, frame.header.request_id});
  }
  back_off_ms_ = options_.back_off_min_ms;
  call.done(Answer{frame.payload, peer_});
  return Status();
}

}  // namespace hicache
