# Completes dyrep in bash: its commands, the settings of launch, the names of runs, else files.
_dyrep() {
    local line=${COMP_LINE:0:COMP_POINT} root=outputs choices word
    word=${line##*[[:space:]]}
    [[ $line =~ --root[[:space:]=]+([^[:space:]]+) ]] && root=${BASH_REMATCH[1]}
    if ((COMP_CWORD == 1)); then
        choices="COMMANDS"
    else
        case ${COMP_WORDS[1]} in
            launch)  # Hydra knows; it is asked as if launch were the program
                choices=$(COMP_LINE="launch ${line#*launch }" "${COMP_WORDS[0]}" launch \
                    --shell-completion query=bash 2>/dev/null) ;;
            logs) choices="$(ls "$root/runs" 2>/dev/null) prep train fuse eval latency" ;;
            status | cancel | compare | sync | lr-finder) choices=$(ls "$root/runs" 2>/dev/null) ;;
            dev-cluster) choices="up down status" ;;
        esac
    fi
    local choice
    COMPREPLY=()
    for choice in $choices; do
        [[ $choice == "$word"* ]] || continue
        [[ $choice == *[=./] ]] || choice+=" "
        [[ $word == *=* ]] && choice=${choice#"${word%=*}="}  # bash breaks words at =
        COMPREPLY+=("$choice")
    done
}
complete -o nospace -o default -F _dyrep dyrep
