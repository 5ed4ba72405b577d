// A world of a few machines: one thread, one seed, its own time. What happens is a queue of events;
// each is of one machine, whose clock is shown while it runs, and comes to nothing when that life
// of the machine is over.
//
// Machines are joined by streams, as TCP would join them: in order, late, and until they break. A
// stream that breaks may lose what is on its way, or deliver it after the next one was made.
//
// Threads: one.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "support.h"

namespace hicache::testing {

/// What this world does to those who live in it. Probabilities are one in so many; 0: never.
struct Faults {
  uint64_t slow_message = 0;    // Takes up to some seconds.
  uint64_t lost_batch = 0;      // A batch of changes vanishes.
  uint64_t repeated_batch = 0;  // It comes again, later.
  uint64_t flipped_read = 0;    // A page arrives with one bit changed.
  uint64_t failed_read = 0;     // It does not arrive.
  uint64_t slow_read = 0;       // Longer than its lease, perhaps.
  uint64_t short_life = 0;      // A page is put for some seconds alone.
  uint64_t dead_client = 0;     // It goes without a word, in the middle of a call.
};

class World;

/// A machine, with the process on it.
struct Host {
  std::string name;
  uint64_t life = 0;  // Counts its processes.
  bool is_up = false;
  uint64_t offset_ns = 0;  // Its clock began so much earlier,
  int64_t drift_ppm = 0;   // and runs so much faster.
  uint64_t paused_until_us = 0;
};

struct Message {
  uint16_t op = 0;
  uint64_t id = 0;
  std::vector<uint8_t> payload;
};

/// Of two ends: 0 asked for it, 1 was asked.
class Stream : public std::enable_shared_from_this<Stream> {
 public:
  struct End {
    Host* host = nullptr;
    uint64_t life = 0;
    bool is_open = true;
    std::function<void(Message)> on_message;
    std::function<void()> on_close;
    std::deque<Message> coming;
    uint64_t last_us = 0;  // When the last of them will come.
  };

  Stream(World& world, Host& from, Host& to);
  void listen(int end, std::function<void(Message)> on_message, std::function<void()> on_close);
  void send(int from, Message message);
  /// Closes an end from inside; the other one hears of it.
  void close(int end);
  /// The network's doing.
  void cut();
  /// A process of one of its machines has ended.
  void lose_end(const Host& host);
  /// Closes an end, and nobody hears of it. Who listened may have kept the stream, which keeps
  /// them.
  void shut(int end);
  bool is_over() const { return !ends_[0].is_open && !ends_[1].is_open; }

 private:
  void deliver(int end);
  void tell_closed(int end, uint64_t delay_us);

  World& world_;
  std::array<End, 2> ends_;
  bool is_cut_ = false;
};
using StreamRef = std::shared_ptr<Stream>;

class World {
 public:
  explicit World(uint64_t number, bool traces);
  ~World();

  Random& random() { return random_; }
  Faults& faults() { return faults_; }
  uint64_t now_us() const { return now_us_; }
  uint64_t events_hash() const { return events_hash_; }

  /// Adds a machine that is off.
  Host& add_host(std::string name);
  void start_host(Host& host);
  /// Ends the process: nothing that it was about to do will happen.
  void stop_host(Host& host);
  /// Has the code that runs next see its clock.
  void show_clock(const Host& host) const;
  /// What its clock shows.
  uint64_t local_ms(const Host& host) const { return local_ns(host) / 1'000'000; }

  /// Has this life of a machine do something after a while.
  void after_us(Host& host, uint64_t delay_us, std::function<void()> task);
  /// The same, of nobody.
  void after_us(uint64_t delay_us, std::function<void()> task);
  /// When its clock shows that.
  void at_local_ms(Host& host, uint64_t local_ms, std::function<void()> task);
  /// Lets time pass, at most so much, until `is_over`. Returns what that says.
  bool run(uint64_t for_us, const std::function<bool()>& is_over);

  void part(const Host& a, const Host& b) { parted_.insert({&a, &b}), parted_.insert({&b, &a}); }
  void join(const Host& a, const Host& b) { parted_.erase({&a, &b}), parted_.erase({&b, &a}); }
  void join_all() { parted_.clear(); }
  bool are_parted(const Host& a, const Host& b) const { return parted_.contains({&a, &b}); }
  uint64_t delay_us();
  bool chance(uint64_t one_in) { return one_in != 0 && random_.one_in(one_in); }

  /// Who is listening on a machine.
  void listen(Host& host, std::function<void(StreamRef)> accept) { accept_[&host] = accept; }
  /// Calls `done` with a stream, or with null.
  void connect(Host& from, Host& to, std::function<void(StreamRef)> done);
  /// Breaks one of those that there are.
  void cut_some_stream();

  void note(const Host* host, const std::string& what);
  /// The world is wrong; what comes after the first fault is not told.
  void fail(const std::string& what);
  bool has_failed() const { return !failure_.empty(); }
  std::string report() const;

 private:
  struct Event {
    Host* host;
    uint64_t life;
    std::function<void()> task;
  };
  uint64_t local_ns(const Host& host) const;
  void step();

  Random random_;
  Faults faults_;
  const bool traces_;
  uint64_t now_us_ = 1'000'000;
  uint64_t events_hash_ = 0;
  uint64_t last_event_ = 0;
  std::map<std::pair<uint64_t, uint64_t>, Event> events_;  // By time, then as they were made.
  std::deque<Host> hosts_;
  std::map<const Host*, std::function<void(StreamRef)>> accept_;
  std::set<std::pair<const Host*, const Host*>> parted_;
  std::vector<StreamRef> streams_;
  std::deque<std::string> last_notes_;
  std::string failure_;
};

}  // namespace hicache::testing
