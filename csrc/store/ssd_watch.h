// What may block about the SSD directories, away from the node's thread: how much space their file
// systems have left, whether they are still there, and the names of namespaces beside the log.
//
// `namespaces.tsv` in each directory is for people and tools: a line for each namespace whose pages
// were written there, its digest in hexadecimal, a tab, its description.
//
// Threads: one of its own; every method may be called from any thread. Where a disk hangs the
// thread outlives the object, with what it needs, and ends when the disk lets it go.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/bytes.h"
#include "tier/ssd_directory.h"

namespace hicache {

class SsdWatch {
 public:
  struct State {
    uint64_t free_bytes;  // UINT64_MAX: not known.
    bool is_gone;
  };

  /// Reads the names that are there. `on_change` is called on the thread after each look.
  SsdWatch(std::vector<std::shared_ptr<const SsdDirectory>> directories,
           std::function<void()> on_change);
  ~SsdWatch();

  std::vector<State> states() const;

  /// The description that some directory has for a namespace, or "".
  std::string description_of(const NamespaceDigest& digest) const;
  /// Adds it to the file of every directory, soon, unless it is there.
  void remember(const NamespaceDigest& digest, const std::string& description);

 private:
  struct Shared {
    std::vector<std::shared_ptr<const SsdDirectory>> directories;
    std::function<void()> on_change;  // Not called any more once `closing`.
    std::mutex mutex;                 // Guards what follows.
    std::condition_variable changed;
    std::vector<State> states;
    std::map<std::string, std::string> names;
    std::vector<std::string> unwritten;  // Lines.
    bool closing = false;
    bool ended = false;
  };

  static void run(Shared& shared);
  static void look(Shared& shared);
  static void write_names(Shared& shared);
  static std::string hex(const NamespaceDigest& digest);
  static void read_names(const SsdDirectory& directory, std::map<std::string, std::string>& names);

  const std::shared_ptr<Shared> shared_;
  std::thread thread_;
};

}  // namespace hicache
