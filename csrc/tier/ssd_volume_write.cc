// The bytes of groups and footers on their way to a volume's file.
#include <algorithm>

#include "tier/ssd_volume.h"

namespace hicache {
namespace {

std::vector<iovec> part_of(const MappedMemory& memory) {
  return {iovec{memory.address(), memory.size()}};
}

}  // namespace

void SsdVolume::append(std::vector<PageWrite> pages, std::vector<SsdEntry> removals,
                       uint64_t unix_time_s, uint64_t now_ms) {
  Region& region = regions_[open_];
  auto group = std::make_shared<Group>();
  group->region = open_;
  group->first_sector = region.used_sectors;
  const uint32_t lead = region.group_count == 0 ? kLeadSectors : 0;
  group->header = MappedMemory::make((lead + 1) * kSectorSize);
  GroupHeader header{region.sequence, region.group_count + lead, 1, unix_time_s, {}};
  const bool is_durable = !removals.empty() || region.group_count == 0;
  IoRequest io{.kind = is_durable ? IoKind::kWriteDurable : IoKind::kWrite,
               .offset = offset_of(open_, region.used_sectors),
               .parts = part_of(group->header)};
  for (PageWrite& page : pages) {
    const uint32_t at = lead + header.sector_count;
    page.entry.first_sector = region.used_sectors + at;
    io.checks.push_back({at * kSectorSize, page.entry.size, page.entry.checksum});
    header.sector_count += static_cast<uint32_t>(sectors_of(page.entry.size));
    header.entries.push_back(page.entry);
    io.parts.insert(io.parts.end(), page.parts.begin(), page.parts.end());
  }
  header.entries.insert(header.entries.end(), removals.begin(), removals.end());
  uint32_t sector_count = lead + header.sector_count;
  if (!removals.empty()) {
    group->echo = MappedMemory::make(kSectorSize);
    io.parts.push_back(part_of(group->echo).front());
    encode(file_.log_id, GroupHeader{region.sequence, header.number + 1, 1, unix_time_s, removals},
           MutableSector(group->echo.span().first<kSectorSize>()));
    ++sector_count;
  }
  io.size = sector_count * kSectorSize;

  region.entries.insert(region.entries.end(), header.entries.begin(), header.entries.end());
  region.removals.insert(region.removals.end(), removals.begin(), removals.end());
  region.used_sectors += sector_count;
  region.group_count = header.number + 1 + (removals.empty() ? 0 : 1);
  group->head = std::move(header);
  encode_header(*group);
  group->pages = std::move(pages);
  group->removals = std::move(removals);
  group->size_bytes = io.size;
  region.groups.push_back(group);
  ++groups_in_flight_;
  writing_bytes_ += io.size;
  submit({.purpose = Purpose::kGroup,
          .region = open_,
          .begun_ms = now_ms,
          .size_bytes = io.size,
          .group = std::move(group)},
         std::move(io));
}

void SsdVolume::write_footer(uint32_t number, uint64_t now_ms) {
  const Region& region = regions_[number];
  const uint64_t sector_count = footer_sectors(region.entries.size());
  auto memory = std::make_shared<MappedMemory>(MappedMemory::make(sector_count * kSectorSize));
  encode_footer(file_.log_id, region.sequence, region.used_sectors, region.entries, memory->span());
  const uint64_t end = offset_of(number, 0) + file_.region_size_bytes;
  IoRequest io{.kind = IoKind::kWrite,
               .offset = end - memory->size(),
               .size = memory->size(),
               .parts = part_of(*memory)};
  submit({.purpose = Purpose::kFooter,
          .region = number,
          .begun_ms = now_ms,
          .size_bytes = io.size,
          .memory = std::move(memory)},
         std::move(io));
}

void SsdVolume::write_sound_pages(Request request, uint32_t damaged) {
  Group& group = *request.group;
  std::vector<PageWrite> sound;
  for (size_t i = 0; i < group.pages.size(); ++i) {
    PageWrite& page = group.pages[i];
    if ((damaged >> i & 1) == 0) {
      sound.push_back(std::move(page));
      continue;
    }
    std::erase(group.head.entries, page.entry);
    std::erase(regions_[group.region].entries, page.entry);
    page.is_damaged = true;
    listener_.on_written(*this, group.region, page, false);
  }
  group.pages = std::move(sound);
  encode_header(group);
  IoRequest io = request_of(group);
  if (!io.parts.empty()) return submit(std::move(request), std::move(io));
  fail_request(request);
  stop_writing("no memory to write a group anew without its damaged pages");
}

void SsdVolume::encode_header(Group& group) const {
  const std::span<uint8_t> sectors = group.header.span();
  const std::span<uint8_t> lead = sectors.first(sectors.size() - kSectorSize);
  if (!lead.empty()) {
    encode_lead(file_.log_id, group.head.region_sequence, group.head.written_at_s, lead);
  }
  encode(file_.log_id, group.head, MutableSector(sectors.last<kSectorSize>()));
}

/// Pages stay where they are, since groups that follow may be on their way: zeros go between them.
/// Without parts: there is no memory for that.
IoRequest SsdVolume::request_of(Group& group) const {
  IoRequest io{.kind = IoKind::kWriteDurable,
               .offset = offset_of(group.region, group.first_sector),
               .size = group.size_bytes,
               .parts = part_of(group.header)};
  uint64_t at = group.header.size();
  group.gaps.clear();
  const auto fill_up_to = [&](uint64_t end) {
    if (at == end) return true;
    group.gaps.push_back(MappedMemory::make(end - at));
    io.parts.push_back(part_of(group.gaps.back()).front());
    at = end;
    return group.gaps.back().valid();
  };
  bool is_whole = true;
  for (const PageWrite& page : group.pages) {
    const uint64_t offset = (page.entry.first_sector - group.first_sector) * kSectorSize;
    is_whole = is_whole && fill_up_to(offset);
    io.parts.insert(io.parts.end(), page.parts.begin(), page.parts.end());
    io.checks.push_back({offset, page.entry.size, page.entry.checksum});
    at = offset + sectors_of(page.entry.size) * kSectorSize;
  }
  is_whole = is_whole && fill_up_to(group.size_bytes - group.echo.size());
  if (group.echo.valid()) io.parts.push_back(part_of(group.echo).front());
  if (!is_whole) io.parts.clear();
  return io;
}

}  // namespace hicache
