// What may block about the SSD directories, away from the node's thread: how much space their file
// systems have left, whether they are still there, and the names of namespaces beside the log.
//
// `namespaces.tsv` in each directory is for people and tools: a line for each namespace whose pages
// were written there, its digest in hexadecimal, a tab, its description.
//
// Threads: one of its own; every method may be called from any thread.
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
  SsdWatch(std::vector<const SsdDirectory*> directories, std::function<void()> on_change);
  ~SsdWatch();

  std::vector<State> states() const;

  /// The description that some directory has for a namespace, or "".
  std::string description_of(const NamespaceDigest& digest) const;
  /// Adds it to the file of every directory, soon, unless it is there.
  void remember(const NamespaceDigest& digest, const std::string& description);

 private:
  void run();
  void look();
  void write_names();
  static std::string hex(const NamespaceDigest& digest);
  static void read_names(const SsdDirectory& directory, std::map<std::string, std::string>& names);

  const std::vector<const SsdDirectory*> directories_;
  const std::function<void()> on_change_;
  mutable std::mutex mutex_;  // Guards what follows.
  std::condition_variable wake_;
  std::vector<State> states_;
  std::map<std::string, std::string> names_;
  std::vector<std::string> unwritten_;  // Lines.
  bool closing_ = false;
  std::thread thread_;
};

}  // namespace hicache
