// A node that has pages in its pool and in files.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <vector>

#include "fake_node.h"
#include "sample_file.h"
#include "support.h"
#include "transfer/checksum_copy.h"

namespace hicache::testing {

/// Pages of odd sizes, some in a pool and the others in two files, and how a node hands them out.
class Shelf {
 public:
  struct Page {
    std::vector<uint8_t> bytes;
    uint8_t device;
    std::vector<Extent> extents;
  };

  explicit Shelf(const std::vector<uint64_t>& sizes) {
    std::vector<uint8_t> contents[3];
    for (uint64_t i = 0; i < sizes.size(); ++i) {
      const auto device = static_cast<uint8_t>(i % 3);
      std::vector<uint8_t>& content = contents[device];
      const Extent place{content.size(), sizes[i]};
      pages.push_back({bytes_of(i, sizes[i]), device, {place}});
      if (device == 0 && sizes[i] > 2) {  // In the pool also in pieces.
        pages.back().extents = {{place.offset, 1}, {place.offset + 1, sizes[i] - 1}};
      }
      content.insert(content.end(), pages[i].bytes.begin(), pages[i].bytes.end());
      content.resize(round_up(content.size(), kSectorSize));
    }
    for (size_t i = 0; i < 2; ++i) {
      files[i] = std::make_unique<SampleFile>(contents[i + 1]);
      opened[i] = files[i]->open();
    }
    node = std::make_unique<FakeNode>(std::vector<int>{opened[0].get(), opened[1].get()}, 2);
    std::memcpy(node->pool->address(), contents[0].data(), contents[0].size());
    node->lease = [this](const KeysRequest& request) { return lease(request.keys); };
  }

  FakeNode::Locations lease(const std::vector<Key>& keys) const {
    FakeNode::Locations locations;
    for (const Key& key : keys) locations.push_back(location(number_of(key)));
    return locations;
  }

  PageStore::Location location(size_t i) const {
    const Page& page = pages[i];
    return location_of(Code::kOk, {static_cast<PageIndex>(i), 7}, page.bytes.size(),
                       page_checksum(page.bytes.data(), page.bytes.size()), page.device,
                       page.extents);
  }

  size_t number_of(const Key& key) const {
    size_t i = 0;
    while (i < pages.size() && !(key_of(i) == key)) ++i;
    EXPECT_LT(i, pages.size());
    return i;
  }

  std::vector<Page> pages;
  std::unique_ptr<SampleFile> files[2];
  Fd opened[2];
  std::unique_ptr<FakeNode> node;  // Goes first.
};

}  // namespace hicache::testing
