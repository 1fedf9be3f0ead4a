# SPDX-License-Identifier: GPL-2.0-or-later
# Completion of hibernaut for bash 4.4 or newer. hibernaut/cli/suggest.py describes the protocol.

_hibernaut() {
    local current=${COMP_WORDS[COMP_CWORD]} found at
    mapfile -t found < <(_HIBERNAUT_COMPLETE=line "${1/#\~/$HOME}" "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
    COMPREPLY=("${found[@]:1}")
    COMPREPLY=("${COMPREPLY[@]%%$'\t'*}")
    if [[ $current == --*=* ]]; then # COMP_WORDBREAKS lacks "="
        COMPREPLY=("${COMPREPLY[@]/#/${current%%=*}=}")
    fi
    if [[ $current != [\'\"]* ]]; then
        for at in "${!COMPREPLY[@]}"; do
            printf -v "COMPREPLY[at]" %q "${COMPREPLY[at]}"
        done
    fi
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]]; then
        compopt -o nospace
    fi
    case ${found[0]-} in
        files)
            if ((${#COMPREPLY[@]})); then
                compopt -o filenames
                mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$current")
            fi ;;
        folders) compopt +o default -o dirnames ;;
        *) compopt +o default ;;
    esac
}

complete -o default -F _hibernaut hibernaut
