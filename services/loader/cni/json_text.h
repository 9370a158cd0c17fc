/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The little JSON that the plugin needs: a strict validator (RFC 8259, UTF-8 checked, bounded
 * depth) that reports the members of the top-level object, and a buffer that writes escaped
 * strings. Values are never turned into a tree: the loader parses the configuration itself, so
 * here it is only proved to be JSON and then passed on byte for byte.
 */
#ifndef FIMBRIA_JSON_TEXT_H
#define FIMBRIA_JSON_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JSON_MAX_DEPTH 64

struct text {
	char *data;
	size_t len;
	size_t cap;
};

static void text_add(struct text *text, const char *data, size_t len)
{
	if (text->len + len + 1 > text->cap) {
		size_t cap = (text->len + len + 1) * 2;
		char *grown = realloc(text->data, cap);

		if (!grown)
			abort();
		text->data = grown;
		text->cap = cap;
	}
	if (len)
		memcpy(text->data + text->len, data, len);
	text->len += len;
	text->data[text->len] = '\0';
}

static void text_puts(struct text *text, const char *data)
{
	text_add(text, data, strlen(data));
}

/* Length of the UTF-8 sequence at `s`, 0 if it is not valid (overlong, surrogate, > U+10FFFF, cut). */
static size_t utf8_sequence(const unsigned char *s, size_t len)
{
	size_t need;
	uint32_t point;

	if (s[0] < 0x80)
		return 1;
	if (s[0] >= 0xc2 && s[0] <= 0xdf) {
		need = 2;
		point = s[0] & 0x1f;
	} else if ((s[0] & 0xf0) == 0xe0) {
		need = 3;
		point = s[0] & 0x0f;
	} else if (s[0] >= 0xf0 && s[0] <= 0xf4) {
		need = 4;
		point = s[0] & 0x07;
	} else {
		return 0;
	}
	if (len < need)
		return 0;
	for (size_t i = 1; i < need; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
		point = point << 6 | (s[i] & 0x3f);
	}
	if (need == 3 && (point < 0x800 || (point >= 0xd800 && point <= 0xdfff)))
		return 0;
	if (need == 4 && (point < 0x10000 || point > 0x10ffff))
		return 0;
	return need;
}

static bool utf8_valid(const char *s)
{
	size_t len = strlen(s), step;

	for (size_t i = 0; i < len; i += step) {
		step = utf8_sequence((const unsigned char *)s + i, len - i);
		if (!step)
			return false;
	}
	return true;
}

/* Appends `s` as a JSON string; bytes that are not UTF-8 become U+FFFD, so the output is always valid. */
static void text_add_string(struct text *text, const char *s)
{
	size_t len = strlen(s), step;
	char escaped[8];

	text_add(text, "\"", 1);
	for (size_t i = 0; i < len; i += step) {
		unsigned char c = (unsigned char)s[i];

		step = utf8_sequence((const unsigned char *)s + i, len - i);
		if (!step) {
			text_puts(text, "\xef\xbf\xbd");
			step = 1;
		} else if (c == '"' || c == '\\') {
			escaped[0] = '\\';
			escaped[1] = (char)c;
			text_add(text, escaped, 2);
		} else if (c < 0x20 || c == 0x7f) {
			snprintf(escaped, sizeof(escaped), "\\u%04x", c);
			text_add(text, escaped, 6);
		} else {
			text_add(text, s + i, step);
		}
	}
	text_add(text, "\"", 1);
}

enum json_type { JSON_STRING, JSON_NUMBER, JSON_OBJECT, JSON_ARRAY, JSON_LITERAL };

/* One member of the top-level object; `value` still has its quotes and escapes. */
struct json_member {
	char *key;
	enum json_type type;
	const char *value;
	size_t value_len;
};

struct json_scan {
	const char *start;
	const char *at;
	const char *end;
	const char *error;
	void (*member)(void *arg, const struct json_member *member);
	void *arg;
};

static bool json_fail(struct json_scan *scan, const char *error)
{
	if (!scan->error)
		scan->error = error;
	return false;
}

static void json_space(struct json_scan *scan)
{
	while (scan->at < scan->end &&
	       (*scan->at == ' ' || *scan->at == '\t' || *scan->at == '\n' || *scan->at == '\r'))
		scan->at++;
}

static int json_hex4(const char *s)
{
	int value = 0;

	for (int i = 0; i < 4; i++) {
		char c = s[i];

		value <<= 4;
		if (c >= '0' && c <= '9')
			value |= c - '0';
		else if (c >= 'a' && c <= 'f')
			value |= c - 'a' + 10;
		else if (c >= 'A' && c <= 'F')
			value |= c - 'A' + 10;
		else
			return -1;
	}
	return value;
}

/* Steps over one \\uXXXX escape, or over a surrogate pair of them; half a pair names no character. */
static bool json_unicode_escape(struct json_scan *scan)
{
	int high, low;

	if (scan->end - scan->at < 6 || (high = json_hex4(scan->at + 2)) < 0)
		return false;
	if (high >= 0xdc00 && high <= 0xdfff)
		return false;
	if (high >= 0xd800 && high <= 0xdbff) {
		if (scan->end - scan->at < 12 || scan->at[6] != '\\' || scan->at[7] != 'u')
			return false;
		low = json_hex4(scan->at + 8);
		if (low < 0xdc00 || low > 0xdfff)
			return false;
		scan->at += 6;
	}
	scan->at += 6;
	return true;
}

static bool json_string(struct json_scan *scan)
{
	scan->at++;
	while (scan->at < scan->end) {
		unsigned char c = (unsigned char)*scan->at;
		size_t step;

		if (c == '"') {
			scan->at++;
			return true;
		}
		if (c < 0x20)
			return json_fail(scan, "unescaped control character in a string");
		if (c == '\\') {
			if (scan->end - scan->at < 2)
				break;
			if (scan->at[1] == 'u') {
				if (!json_unicode_escape(scan))
					return json_fail(scan, "bad \\u escape in a string");
			} else if (memchr("\"\\/bfnrt", scan->at[1], 8)) {
				scan->at += 2;
			} else {
				return json_fail(scan, "unknown escape in a string");
			}
			continue;
		}
		step = utf8_sequence((const unsigned char *)scan->at, (size_t)(scan->end - scan->at));
		if (!step)
			return json_fail(scan, "invalid UTF-8 in a string");
		scan->at += step;
	}
	return json_fail(scan, "unterminated string");
}

static size_t json_digits(struct json_scan *scan)
{
	const char *first = scan->at;

	while (scan->at < scan->end && *scan->at >= '0' && *scan->at <= '9')
		scan->at++;
	return (size_t)(scan->at - first);
}

static bool json_number(struct json_scan *scan)
{
	if (*scan->at == '-')
		scan->at++;
	if (scan->at < scan->end && *scan->at == '0')
		scan->at++;
	else if (!json_digits(scan))
		return json_fail(scan, "bad number");
	if (scan->at < scan->end && *scan->at == '.') {
		scan->at++;
		if (!json_digits(scan))
			return json_fail(scan, "bad number");
	}
	if (scan->at < scan->end && (*scan->at == 'e' || *scan->at == 'E')) {
		scan->at++;
		if (scan->at < scan->end && (*scan->at == '+' || *scan->at == '-'))
			scan->at++;
		if (!json_digits(scan))
			return json_fail(scan, "bad number");
	}
	return true;
}

static bool json_literal(struct json_scan *scan, const char *word)
{
	size_t len = strlen(word);

	if ((size_t)(scan->end - scan->at) < len || memcmp(scan->at, word, len))
		return json_fail(scan, "unexpected character");
	scan->at += len;
	return true;
}

/* Decodes the checked string token [token, token+len) with its quotes; a NUL in it cuts it, which only makes it not match. */
static char *json_decode_string(const char *token, size_t len)
{
	const char *at = token + 1, *end = token + len - 1;
	struct text out = { 0 };

	text_add(&out, "", 0);
	while (at < end) {
		char utf8[4];
		int point;

		if (*at != '\\') {
			text_add(&out, at++, 1);
			continue;
		}
		if (at[1] != 'u') {
			static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";

			utf8[0] = to[strchr(from, at[1]) - from];
			text_add(&out, utf8, 1);
			at += 2;
			continue;
		}
		point = json_hex4(at + 2);
		at += 6;
		if (point >= 0xd800 && point <= 0xdbff) {
			point = 0x10000 + ((point - 0xd800) << 10) + (json_hex4(at + 2) - 0xdc00);
			at += 6;
		}
		if (point < 0x80) {
			utf8[0] = (char)point;
			text_add(&out, utf8, 1);
		} else if (point < 0x800) {
			utf8[0] = (char)(0xc0 | point >> 6);
			utf8[1] = (char)(0x80 | (point & 0x3f));
			text_add(&out, utf8, 2);
		} else if (point < 0x10000) {
			utf8[0] = (char)(0xe0 | point >> 12);
			utf8[1] = (char)(0x80 | (point >> 6 & 0x3f));
			utf8[2] = (char)(0x80 | (point & 0x3f));
			text_add(&out, utf8, 3);
		} else {
			utf8[0] = (char)(0xf0 | point >> 18);
			utf8[1] = (char)(0x80 | (point >> 12 & 0x3f));
			utf8[2] = (char)(0x80 | (point >> 6 & 0x3f));
			utf8[3] = (char)(0x80 | (point & 0x3f));
			text_add(&out, utf8, 4);
		}
	}
	return out.data;
}

static bool json_value(struct json_scan *scan, int depth, enum json_type *type);

static bool json_object(struct json_scan *scan, int depth)
{
	scan->at++;
	json_space(scan);
	if (scan->at < scan->end && *scan->at == '}') {
		scan->at++;
		return true;
	}
	for (;;) {
		struct json_member member = { 0 };
		const char *key;
		size_t key_len;

		json_space(scan);
		if (scan->at >= scan->end || *scan->at != '"')
			return json_fail(scan, "expected a member name");
		key = scan->at;
		if (!json_string(scan))
			return false;
		key_len = (size_t)(scan->at - key);
		json_space(scan);
		if (scan->at >= scan->end || *scan->at != ':')
			return json_fail(scan, "expected ':'");
		scan->at++;
		json_space(scan);
		member.value = scan->at;
		if (!json_value(scan, depth + 1, &member.type))
			return false;
		if (depth == 0 && scan->member) {
			member.value_len = (size_t)(scan->at - member.value);
			member.key = json_decode_string(key, key_len);
			scan->member(scan->arg, &member);
			free(member.key);
		}
		json_space(scan);
		if (scan->at >= scan->end)
			return json_fail(scan, "unterminated object");
		if (*scan->at == '}') {
			scan->at++;
			return true;
		}
		if (*scan->at++ != ',')
			return json_fail(scan, "expected ',' or '}'");
	}
}

static bool json_array(struct json_scan *scan, int depth)
{
	enum json_type type;

	scan->at++;
	json_space(scan);
	if (scan->at < scan->end && *scan->at == ']') {
		scan->at++;
		return true;
	}
	for (;;) {
		json_space(scan);
		if (!json_value(scan, depth + 1, &type))
			return false;
		json_space(scan);
		if (scan->at >= scan->end)
			return json_fail(scan, "unterminated array");
		if (*scan->at == ']') {
			scan->at++;
			return true;
		}
		if (*scan->at++ != ',')
			return json_fail(scan, "expected ',' or ']'");
	}
}

static bool json_value(struct json_scan *scan, int depth, enum json_type *type)
{
	if (depth > JSON_MAX_DEPTH)
		return json_fail(scan, "nested deeper than 64 levels");
	if (scan->at >= scan->end)
		return json_fail(scan, "unexpected end");
	switch (*scan->at) {
	case '{':
		*type = JSON_OBJECT;
		return json_object(scan, depth);
	case '[':
		*type = JSON_ARRAY;
		return json_array(scan, depth);
	case '"':
		*type = JSON_STRING;
		return json_string(scan);
	case 't':
		*type = JSON_LITERAL;
		return json_literal(scan, "true");
	case 'f':
		*type = JSON_LITERAL;
		return json_literal(scan, "false");
	case 'n':
		*type = JSON_LITERAL;
		return json_literal(scan, "null");
	default:
		*type = JSON_NUMBER;
		if (*scan->at != '-' && (*scan->at < '0' || *scan->at > '9'))
			return json_fail(scan, "unexpected character");
		return json_number(scan);
	}
}

/*
 * Checks that [data, data+len) is exactly one JSON object and calls scan->member for each of its
 * members. On failure scan->error says what is wrong and scan->at where.
 */
static bool json_scan_object(struct json_scan *scan, const char *data, size_t len)
{
	enum json_type type;

	scan->start = scan->at = data;
	scan->end = data + len;
	scan->error = NULL;
	json_space(scan);
	if (scan->at >= scan->end)
		return json_fail(scan, "empty input");
	if (*scan->at != '{')
		return json_fail(scan, "expected a JSON object");
	if (!json_value(scan, 0, &type))
		return false;
	json_space(scan);
	if (scan->at != scan->end)
		return json_fail(scan, "trailing characters after the object");
	return true;
}

#endif
