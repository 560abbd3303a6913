@file:JvmName("Sessions")

package org.example.session

import kotlin.math.max
import kotlinx.coroutines.flow.Flow

const val LIMIT = 10

/** Where a session is — größer. */
enum class Phase(val letter: Char) {
    OPEN('o'),
    SHUT('s');

    fun isOver() = this == SHUT
}

sealed interface Event {
    data class Opened(val at: Long) : Event
    object Shut : Event
}

/**
 * One session.
 */
@Suppress("unused")
class Session<T : Any>(
    private val name: String,
    vararg items: T,
) : AutoCloseable {
    private val items = items.toMutableList()
    var phase: Phase = Phase.OPEN
        private set

    val size: Int
        get() = items.size

    init {
        require(name.isNotBlank()) { "a name 🎉" }
    }

    constructor(name: String) : this(name, *emptyArray<Any>() as Array<T>)

    // A comment between members.
    fun add(item: T): Boolean {
        if (phase.isOver()) return false
        items += item
        return items.size <= LIMIT
    }

    suspend fun collect(flow: Flow<T>) {
        flow.collect { item ->
            when {
                !add(item) -> close()
                else -> Unit
            }
        }
    }

    override fun close() {
        phase = Phase.SHUT
    }

    companion object {
        @JvmStatic
        fun <T : Any> of(vararg items: T): Session<T> = Session("of", *items)
    }

    inner class Cursor(var position: Int = 0) {
        operator fun next(): T = items[position++]
    }
}

fun <T : Any> Session<T>.largest(other: Session<T>): Int = max(size, other.size)

typealias Names = Map<String, List<String>>

val greeting = """
    |hello $LIMIT
    |${"world".uppercase()}
""".trimMargin()

object Registry {
    private val known = mutableMapOf<String, Session<*>>()

    fun register(name: String) = known.getOrPut(name) { Session<Any>(name) }
}
