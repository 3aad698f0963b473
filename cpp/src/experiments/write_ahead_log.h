#pragma once

#include <filesystem>
#include <string>

namespace introspect::experiments {

/// The log that SQLite keeps beside a database.
std::filesystem::path log_of(const std::filesystem::path& database);

/// What is wrong with a write-ahead log; empty: nothing, or there is none.
///
/// SQLite reads a log up to the first frame that is not whole and takes the rest for what a killed writer left, so a
/// damaged log hides commits without a word. Here a frame that is not whole is damage where frames of the same
/// generation follow it, or where nothing at all of the log can be read.
/// Source: https://sqlite.org/fileformat.html, section 4.
std::string damage_of_log(const std::filesystem::path& log);

}  // namespace introspect::experiments
