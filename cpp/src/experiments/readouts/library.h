#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "introspect/experiments/readouts.h"
#include "introspect/experiments/value.h"

// What the sources of this folder share. Each registers one readout by itself; CMakeLists.txt is the list of them.
namespace introspect::experiments {

/// Registers a readout of the library, whose name no program may take.
bool register_library_readout(Readout readout);

/// What a run reads: what the protocol asks for and what the run's options do. Where both do, of two numbers the larger
/// holds, and else the run's parameter.
Readouts asked_for(const Readouts& of_protocol, const Readouts& of_run);

/// false, 0 or an empty list: as if nobody had asked for the readout.
bool is_off(const Value& parameter);

/// What is wrong with a readout's parameter, or nothing. Throws ConfigError for a name that is not there.
std::string problem_of_parameter(const std::string& name, const Value& parameter);

/// Whether it is one of the library's, not of a program that uses it.
bool is_library_readout(const std::string& name);

/// Whether a readout with the parameter true or false is on.
bool is_on(const ReadoutRequest& request);

Value::List as_list(const std::vector<int64_t>& ids);
/// [N] of any floating dtype.
Value::Numbers as_numbers(const torch::Tensor& values);

// ---- the first format ----

/// Protocols and keys of stores name all of these where one is asked for, in this order and so when they are off, as they
/// did before there were others: hashes stay what they are.
const std::vector<std::pair<std::string, Value>>& first_readouts();
bool is_first_readout(const std::string& name);

// ---- checks of values from files: what is wrong, or nothing. `where` names the value. ----

constexpr double kRounding = 1e-3;  // of a probability made from float32 logits

/// NaN stands for what was not finite when it was read.
bool is_probability(double p);
/// "WHERE must be REQUIRED, got ...".
std::string wrong(const std::string& where, const std::string& required, const Value& got);
std::string problem_of_number(const Value& value, const std::string& where);
std::string problem_of_numbers(const Value& value, const std::string& where);
/// A list of such lists.
std::string problem_of_table(const Value& value, const std::string& where);

using CheckElement = std::function<std::string(const Value&, const std::string&)>;
std::string problem_of_list(const Value& value, const std::string& where, const CheckElement& check);

enum class Kind { text, whole, number };
std::string problem_of_fields(const Value& value, const std::string& where,
                              const std::vector<std::pair<std::string, Kind>>& fields);

/// The last residuals after each of these tokens, which follow the read position: [T, 1, D].
Need residuals_after(const ReadoutRequest& request, const std::vector<int64_t>& ids);
/// All that a readout needs, where these are its only needs: [T, D] each.
std::vector<torch::Tensor> last_residuals(const ReadoutInputs& inputs);

// ---- tokens at the read position ----

/// The ids of the tokens that a content report reads: for each concept its word without and with a space before it.
/// Empty for other protocols.
std::vector<int64_t> report_ids(const ReadoutRequest& request);

/// One token: {"token", "id", "log_prob" (natural logarithm over the whole vocabulary), "rank" (1 is the most probable)}.
Value::List read_tokens(const ReadoutInputs& inputs, const std::vector<int64_t>& ids);
std::string problem_of_tokens(const Value& value, const std::string& where);

}  // namespace introspect::experiments
