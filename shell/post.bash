# Runs in bash after each command, sourced from a file of the owner's.
# \builtin: neither an alias nor a function of the user's may stand in the way.
# Nothing here forks, and no failure ends a shell under set -e: hence "|| :".
# A command that ran to its end set __deployx_s, _u and _p itself: see driver.go, carry.
__deployx_s=${__deployx_s-$?}
{
@ENDED@
@RESTORE@
# Once: a run that was cut short after it must not overwrite what is being read.
[[ ${__deployx_w-} ]] || {
	\builtin pwd -L
	\builtin printf '\0'
	\builtin umask
	\builtin printf '\0'
	\builtin declare -p
	\builtin printf '\0'
	\builtin declare -F
	\builtin printf '\0'
	\builtin declare -f
	\builtin printf '\0'
	\builtin alias -p
	\builtin printf '\0'
	[[ $# = 0 ]] || \builtin printf '%q ' "$@"
	\builtin printf '\0%s\0%s\0end' "${__deployx_u-}" "${__deployx_p-}"
} >|'@STATE@'
__deployx_w=1
@LEAVE@
} 2>/dev/null || :
# The nonce came with this file, so no earlier command can have known it.
\builtin printf '%s %s' @NONCE@ "$__deployx_s" >&0 2>/dev/null || :
# What an interactive bash would act on while it waits; the next command gets
# these back first.
\builtin unset -v PS0 PS1 PROMPT_COMMAND TMOUT MAIL MAILPATH MAILCHECK IGNOREEOF 2>/dev/null || :
__deployx_d=1
\builtin unset -v __deployx_s __deployx_u __deployx_p __deployx_w 2>/dev/null || :
