#include "plan.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace df {
namespace {

[[noreturn]] void fail(const std::string& what) { throw std::invalid_argument("plan: " + what); }

void require(bool ok, const char* what) {
    if (!ok) fail(what);
}

// Bounded cursor over the bytes: every section is checked against what is left before it is copied.
struct Reader {
    const uint8_t* at;
    size_t left;

    template <class T>
    std::vector<T> take(uint64_t count, const char* what) {
        if (count > left / sizeof(T)) fail(std::string("truncated in ") + what);
        std::vector<T> out(count);
        if (count) std::memcpy(out.data(), at, count * sizeof(T));
        at += count * sizeof(T);
        left -= count * sizeof(T);
        return out;
    }
};

void check_header(const PlanHeader& h) {
    require(std::memcmp(h.magic, "DFPLAN\r\n", 8) == 0, "magic is not DFPLAN");
    require(h.version == 1, "version is not 1");
    require(h.dim >= 1 && h.dim <= kMaxDim, "dim is not in 1..256");
    require(h.n_rows >= 1 && h.n_rows <= kMaxRows, "n_rows is not in 1..2^20");
    require(h.n_ops >= 1 && h.n_ops <= kMaxLinears, "n_ops is not in 1..16");
    require(h.n_tables >= 1 && h.n_tables <= kMaxTables, "n_tables is not in 1..2^20");
    require(h.n_classes <= kMaxTables, "n_classes is above 2^20");
    require(h.n_values == h.n_ops + 1, "n_values is not n_ops + 1");
    require(h.out_value >= 1 && h.out_value < h.n_values, "out_value names no computed value");
    require((h.terms & ~uint32_t(kTermsAll)) == 0, "terms has unknown bits");
    require(h.branches == 1 || h.branches == 2, "branches is not 1 or 2");
    require(h.branches == 1 || h.n_classes >= 2, "guidance needs at least one class beside the null class");
    require(h.reserved[0] == 0 && h.reserved[1] == 0, "reserved header fields are not zero");
}

uint32_t terms_of(const StepRow& r) {
    uint32_t t = 0;
    const auto set = [&t](bool used, uint32_t bit) { t |= used ? bit : 0u; };
    set(r.c_in != 1.0f, kTermCin);
    set(r.p_x != 0.0f, kTermPx);
    set(r.p_F != 0.0f, kTermPF);
    set(!std::isinf(r.clip), kTermClip);
    set(r.a != 0.0f, kTermA);
    set(r.b != 0.0f, kTermB);
    set(r.e != 0.0f, kTermE);
    set(r.c1 != 0.0f, kTermC1);
    set(r.c2 != 0.0f, kTermC2);
    set(r.c3 != 0.0f, kTermC3);
    set(r.s != 0.0f, kTermS);
    set(r.flags & kPush, kTermPush);
    return t;
}

void check_rows(const Plan& p) {
    uint32_t terms = 0;
    for (const StepRow& r : p.rows) {
        const float coefficients[] = {r.c_in, r.p_x, r.p_F, r.a, r.b, r.e, r.c1, r.c2, r.c3, r.s, r.guidance};
        for (float c : coefficients) require(std::isfinite(c), "a row coefficient is not finite");
        require(r.clip > 0.0f, "a row's clip is not positive");  // NaN fails too
        require(r.table < p.header.n_tables, "a row's table is not below n_tables");
        require((r.flags & ~uint32_t(kEval | kPush)) == 0, "a row has unknown flags");
        require((r.flags & kEval) || (r.p_F == 0.0f && r.e == 0.0f), "a row without eval uses F");
        require(r.reserved[0] == 0 && r.reserved[1] == 0, "reserved row fields are not zero");
        terms |= terms_of(r);
    }
    require(terms == p.header.terms, "terms does not match the rows");
}

// An array of `count` x `width` floats at `offset` of the blob: inside it, and finite.
void check_array(const Plan& p, int64_t offset, uint64_t count, uint64_t width, const char* what) {
    if (offset == -1) return;
    const uint64_t size = count * width;  // both below 2^21: no overflow
    if (offset < 0 || uint64_t(offset) > p.blob.size() || size > p.blob.size() - uint64_t(offset))
        fail(std::string(what) + " lies outside the blob");
    for (uint64_t i = 0; i < size; ++i)
        if (!std::isfinite(p.blob[size_t(offset) + i])) fail(std::string(what) + " is not finite");
}

void check_ops(const Plan& p) {
    std::vector<bool> written(p.header.n_values, false);
    written[0] = true;
    for (const TileOp& op : p.ops) {
        require(op.kind == uint32_t(OpKind::kLinear), "an op has an unknown kind");
        require(op.activation < uint32_t(Activation::kCount), "an op has an unknown activation");
        require(std::isfinite(op.act_param), "an activation parameter is not finite");
        require(op.src < p.header.n_values && written[op.src], "an op reads a value not written yet");
        require(op.dst < p.header.n_values && !written[op.dst], "an op writes a value written already");
        require(op.n_in == p.widths[op.src] && op.n_out == p.widths[op.dst],
                "an op's widths differ from its values'");
        require(op.weight >= 0, "an op has no weight");
        require(op.class_table == -1 || p.header.n_classes > 0, "a class table without classes");
        require(op.reserved == 0, "reserved op field is not zero");
        check_array(p, op.weight, op.n_out, op.n_in, "a weight");
        check_array(p, op.bias, 1, op.n_out, "a bias");
        check_array(p, op.step_table, p.header.n_tables, op.n_out, "a step table");
        check_array(p, op.class_table, p.header.n_classes, op.n_out, "a class table");
        written[op.dst] = true;
    }
    require(p.widths[p.header.out_value] == p.header.dim, "the output's width is not dim");
}

}  // namespace

Plan parse_plan(const uint8_t* bytes, size_t size) {
    Reader in{bytes, size};
    Plan p;
    p.header = in.take<PlanHeader>(1, "the header")[0];
    check_header(p.header);
    p.rows = in.take<StepRow>(p.header.n_rows, "the rows");
    p.widths = in.take<uint32_t>((p.header.n_values + 15) / 16 * 16, "the value widths");
    for (size_t i = p.header.n_values; i < p.widths.size(); ++i)
        require(p.widths[i] == 0, "padding is not zero");
    p.widths.resize(p.header.n_values);
    for (uint32_t w : p.widths) require(w >= 1 && w <= kMaxWidth, "a value's width is not in 1..2048");
    require(p.widths[0] == p.header.dim, "value 0 is not dim wide");
    p.ops = in.take<TileOp>(p.header.n_ops, "the ops");
    p.blob = in.take<float>(p.header.n_floats, "the blob");
    require(in.left == 0, "bytes follow the blob");
    check_rows(p);
    check_ops(p);
    return p;
}

}  // namespace df
