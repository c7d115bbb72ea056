# What the demos share; read by them.
model=.cache/SmolLM2-135M-Instruct.Q4_1.gguf

bold='' plain=''
if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; fi

step() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
# Long answers within the page, indented.
tidy() { fold -s -w 96 | sed -E 's/^([^ ])/    \1/'; }
minutes() { printf '%d min %02d s' $(($1 / 60)) $(($1 % 60)); }
