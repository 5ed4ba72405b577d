#include "sim/sim_world.h"

#include <algorithm>

#include "sim/sim_clock.h"

namespace hicache::testing {
namespace {

constexpr size_t kNotesMax = 400;
constexpr uint64_t kPartedLookUs = 20'000;
constexpr uint64_t kConnectTimeoutUs = 400'000;

}  // namespace

// ---------------------------------------------------------------- streams

Stream::Stream(World& world, Host& from, Host& to) : world_(world) {
  ends_[0].host = &from;
  ends_[1].host = &to;
  for (End& end : ends_) end.life = end.host->life;
}

void Stream::listen(int end, std::function<void(Message)> on_message,
                    std::function<void()> on_close) {
  if (!ends_[end].is_open) {  // It ended before anybody listened: who reads from it finds that.
    world_.after_us(*ends_[end].host, 0, std::move(on_close));
    return;
  }
  ends_[end].on_message = std::move(on_message);
  ends_[end].on_close = std::move(on_close);
}

void Stream::send(int from, Message message) {
  End& to = ends_[1 - from];
  if (!ends_[from].is_open || is_cut_) return;
  to.coming.push_back(std::move(message));
  to.last_us = std::max(to.last_us, world_.now_us() + world_.delay_us());
  world_.after_us(to.last_us - world_.now_us(),
                  [self = shared_from_this(), end = 1 - from] { self->deliver(end); });
}

/// The first of those that are on their way.
void Stream::deliver(int end) {
  End& to = ends_[end];
  if (!to.is_open || to.coming.empty()) return;
  const bool must_wait = world_.are_parted(*ends_[0].host, *ends_[1].host) ||
                         world_.now_us() < to.host->paused_until_us;
  if (must_wait) {
    world_.after_us(kPartedLookUs, [self = shared_from_this(), end] { self->deliver(end); });
    return;
  }
  Message message = std::move(to.coming.front());
  to.coming.pop_front();
  world_.after_us(*to.host, 0, [self = shared_from_this(), end, message = std::move(message)] {
    const auto on_message = self->ends_[end].on_message;
    if (self->ends_[end].is_open && on_message) on_message(message);
  });
}

void Stream::close(int end) {
  if (!ends_[end].is_open) return;
  shut(end);
  tell_closed(1 - end, world_.delay_us());
}

void Stream::shut(int end) {
  ends_[end].is_open = false;
  ends_[end].on_message = nullptr;
  ends_[end].on_close = nullptr;
}

void Stream::cut() {
  if (is_cut_) return;
  is_cut_ = true;
  for (int end : {0, 1}) {
    if (world_.random().one_in(2)) ends_[end].coming.clear();
    tell_closed(end, world_.random().size_up_to(end == 0 ? 50'000 : 2'000'000));
  }
}

void Stream::lose_end(const Host& host) {
  for (int end : {0, 1}) {
    if (ends_[end].host != &host || !ends_[end].is_open) continue;
    shut(end);
    tell_closed(1 - end, world_.delay_us());
  }
}

void Stream::tell_closed(int end, uint64_t delay_us) {
  world_.after_us(delay_us, [self = shared_from_this(), end] {
    End& told = self->ends_[end];
    if (!told.is_open) return;
    const bool must_wait = self->world_.are_parted(*self->ends_[0].host, *self->ends_[1].host);
    if (must_wait) return self->tell_closed(end, kPartedLookUs);
    self->world_.after_us(*told.host, 0, [self, end] {
      End& closed = self->ends_[end];
      if (!closed.is_open) return;
      const auto on_close = closed.on_close;
      self->shut(end);
      if (on_close) on_close();
    });
  });
}

// ---------------------------------------------------------------- the world

World::World(uint64_t number, bool traces) : random_(5'000'000 + number), traces_(traces) {
  seed_tokens(random_.bits());
}

World::~World() {
  for (const StreamRef& stream : streams_) {
    for (int end : {0, 1}) stream->shut(end);
  }
}

Host& World::add_host(std::string name) {
  Host& host = hosts_.emplace_back();
  host.name = std::move(name);
  host.offset_ns = random_.size_up_to(uint64_t{1} << 55);
  host.drift_ppm = static_cast<int64_t>(random_.below(4001)) - 2000;
  return host;
}

uint64_t World::local_ns(const Host& host) const {
  const auto passed_ns = static_cast<int64_t>(now_us_ * 1000);
  return host.offset_ns + static_cast<uint64_t>(passed_ns + passed_ns / 1'000'000 * host.drift_ppm);
}

void World::show_clock(const Host& host) const {
  set_clock_ns(local_ns(host));
}

void World::start_host(Host& host) {
  ++host.life;
  host.is_up = true;
  host.paused_until_us = 0;
}

void World::stop_host(Host& host) {
  host.is_up = false;
  accept_.erase(&host);
  for (const StreamRef& stream : streams_) stream->lose_end(host);
}

void World::after_us(Host& host, uint64_t delay_us, std::function<void()> task) {
  events_.emplace(std::pair(now_us_ + delay_us, ++last_event_),
                  Event{&host, host.life, std::move(task)});
}

void World::after_us(uint64_t delay_us, std::function<void()> task) {
  events_.emplace(std::pair(now_us_ + delay_us, ++last_event_), Event{nullptr, 0, std::move(task)});
}

void World::at_local_ms(Host& host, uint64_t local_ms, std::function<void()> task) {
  const uint64_t now_ms = this->local_ms(host);
  after_us(host, local_ms > now_ms ? (local_ms - now_ms) * 1000 : 0, std::move(task));
}

bool World::run(uint64_t for_us, const std::function<bool()>& is_over) {
  const uint64_t until_us = now_us_ + for_us;
  while (!has_failed() && !is_over()) {
    if (events_.empty() || events_.begin()->first.first > until_us) {
      now_us_ = until_us;
      return is_over();
    }
    step();
  }
  return !has_failed();
}

void World::step() {
  const auto first = events_.begin();
  now_us_ = std::max(now_us_, first->first.first);
  Event event = std::move(first->second);
  events_.erase(first);
  if (event.host != nullptr) {
    Host& host = *event.host;
    if (!host.is_up || host.life != event.life) return;
    if (host.paused_until_us > now_us_) {
      events_.emplace(std::pair(host.paused_until_us, ++last_event_), std::move(event));
      return;
    }
    show_clock(host);
  }
  events_hash_ = (events_hash_ ^ now_us_) * 0x9E3779B97F4A7C15;
  event.task();
}

uint64_t World::delay_us() {
  if (chance(faults_.slow_message)) return random_.size_up_to(3'000'000);
  return random_.between(20, 400);
}

void World::connect(Host& from, Host& to, std::function<void(StreamRef)> done) {
  const uint64_t life = from.life;
  after_us(delay_us(), [this, &from, &to, life, done = std::move(done)]() mutable {
    if (!from.is_up || from.life != life) return;
    if (are_parted(from, to) || to.paused_until_us > now_us_) {
      return after_us(from, kConnectTimeoutUs, [done] { done(nullptr); });
    }
    const auto accept = accept_.find(&to);
    if (!to.is_up || accept == accept_.end()) return after_us(from, 100, [done] { done(nullptr); });
    auto stream = std::make_shared<Stream>(*this, from, to);
    std::erase_if(streams_, [](const StreamRef& old) { return old->is_over(); });
    streams_.push_back(stream);
    after_us(to, 0, [accept = accept->second, stream] { accept(stream); });
    after_us(from, random_.between(20, 200), [done, stream] { done(stream); });
  });
}

void World::cut_some_stream() {
  std::erase_if(streams_, [](const StreamRef& old) { return old->is_over(); });
  if (streams_.empty()) return;
  note(nullptr, "a stream breaks");
  random_.pick(streams_)->cut();
}

// ---------------------------------------------------------------- what was seen

void World::note(const Host* host, const std::string& what) {
  if (!traces_) return;
  last_notes_.push_back(std::to_string(now_us_ / 1000) + "." +
                        std::to_string(1000 + now_us_ % 1000).substr(1) + " ms  " +
                        (host == nullptr ? "world" : host->name) + "  " + what);
  if (last_notes_.size() > kNotesMax) last_notes_.pop_front();
}

void World::fail(const std::string& what) {
  if (has_failed()) return;
  failure_ = "at " + std::to_string(now_us_ / 1000) + " ms: " + what;
}

std::string World::report() const {
  std::string text = failure_;
  for (const std::string& note : last_notes_) text += "\n  " + note;
  return text;
}

}  // namespace hicache::testing
